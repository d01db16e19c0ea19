-- One pass over what time alone decides; any number of processes may run it, each change is one atomic step.
-- ARGV: now, '1' if expired leases may be taken back, most changes of a kind in this pass, bell (see take_bell)
-- Returns {leases taken back, deadlines passed, bells rung}.
local now, limit = clock(ARGV[1]), tonumber(ARGV[3])
local taken, expired = 0, 0
take_bell(4)

-- One damaged document must not keep a pass from the others: it is let go of, and stays as it is.
local function each_due(zset, undertake)
  local done = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', zset, '-inf', now, 'LIMIT', 0, limit)) do
    local job = read(id)
    if not job or TERMINAL[job.status] or not pcall(undertake, id, job) then
      redis.call('ZREM', zset, id)
    else
      done = done + 1
    end
  end
  return done
end

local function lease_ran_out(id, job)
  local losses = tostring(number(job.losses) + 1)
  if number(losses) < LIMITS.losses then return take_back(id, job, now, { losses = losses }) end
  local why = failure('worker_lost', 'Worker after worker was lost while drawing this generation.', true)
  why.losses = losses
  finish(id, job, 'failed', now, why)
end

local function deadline_passed(id, job)
  local agent, execution, was = job.agent_id, job.execution_id, job.status
  finish(id, job, 'expired', now, failure('deadline_exceeded', 'The deadline passed before the generation ended.', true))
  if was == 'running' then redis.call('PUBLISH', k('orders', agent), 'cancel ' .. execution) end
end

if ARGV[2] == '1' then taken = each_due(k('leases'), lease_ran_out) end
expired = each_due(k('deadlines'), deadline_passed)

-- A bell is lost when a worker dies with it in hand. Bells are counted, not matched: too many are harmless, but none
-- is rung where every waiting tenant is at its cap, or agents would do nothing but answer.
local function choosable(pool)
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', k('active', pool, priority)) == 1 then return true end
  end
  return false
end

for _, pool in ipairs(redis.call('SMEMBERS', k('pools'))) do
  local missing = number(redis.call('HGET', k('pool', pool), 'queued')) - redis.call('LLEN', k('rq_queue', pool))
  if missing > 0 and choosable(pool) then
    for _ = 1, math.min(missing, limit) do ring(pool) end
  end
end
return { taken, expired, BELL.rung }
