-- What waits and what runs, in as many words as a forecast needs: its size is bounded however long the queues are.
-- ARGV: now
-- Returns {now, running, agents, pools}:
--   running: per job {id, pool, tenant, agent, progress step, progress steps}, LIMITS.survey_running at most
--   agents: their records, as JSON
--   pools: per pool {name, last sequence, waiting, per priority {virtual time, times passed over, tenants}}
--   tenants: per tenant, those that have used least first, LIMITS.survey_tenants at most:
--     {name, virtual time, weight, cap of running jobs or '', running, waiting, held back?, points}
--   points: {rank, job, sequence} of the first jobs, then of some at even distances, the last one among them
-- Nothing is changed, and nothing that is found fails the script.
local now = clock(ARGV[1])

local function ask(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then return nil end
  return reply or nil
end

local function pairs_of(reply)
  local found = {}
  for i = 1, #(reply or {}), 2 do found[#found + 1] = { reply[i], reply[i + 1] } end
  return found
end

local function text(value)
  return type(value) == 'string' and value or ''
end

local function points_of(queue, waiting, heads, spread)
  local points = {}
  for rank, each in ipairs(pairs_of(ask('ZRANGE', queue, 0, heads - 1, 'WITHSCORES'))) do
    points[#points + 1] = { rank - 1, each[1], each[2] }
  end
  local beyond = waiting - heads
  local parts = math.min(spread, beyond)
  for part = 1, parts do
    local rank = heads - 1 + math.floor(beyond * part / parts)
    local each = ask('ZRANGE', queue, rank, rank, 'WITHSCORES')
    if each and each[1] then points[#points + 1] = { rank, each[1], each[2] } end
  end
  return points
end

local running = {}
for _, id in ipairs(ask('ZRANGE', k('leases'), 0, LIMITS.survey_running - 1) or {}) do
  local seen = ask('HMGET', k('job', id), 'pool', 'tenant', 'agent_id', 'progress_step', 'progress_steps', 'status')
  if seen and seen[6] == 'running' then
    running[#running + 1] = { id, text(seen[1]), text(seen[2]), text(seen[3]), count(seen[4]), count(seen[5]) }
  end
end

local agents = {}
-- Those that spoke last; of one that fell silent there is no record.
for _, agent in ipairs(ask('ZREVRANGE', k('agents'), 0, LIMITS.survey_agents - 1) or {}) do
  local record = ask('GET', k('agent', agent))
  if type(record) == 'string' then agents[#agents + 1] = record end
end

-- Tenants of one class that wait: those that can be chosen, and those that a cap holds back.
local function waiting_tenants(pool, priority, present)
  local found = {}
  for _, each in ipairs(pairs_of(ask('ZRANGE', k('active', pool, priority), 0, LIMITS.survey_tenants - 1, 'WITHSCORES'))) do
    found[#found + 1] = { each[1], number(each[2]), 0 }
  end
  for _, tenant in ipairs(ask('SRANDMEMBER', k('held', pool, priority), LIMITS.survey_tenants - #found) or {}) do
    local used = number(ask('ZSCORE', k('idle', pool, priority), tenant))
    found[#found + 1] = { tenant, math.max(used, present), 1 }
  end
  return found
end

local function class_of(pool, priority)
  local state = ask('HMGET', k('pool', pool), 'vtime_' .. priority, 'passed_' .. priority) or {}
  local present = number(state[1])
  local found = waiting_tenants(pool, priority, present)
  local heads = math.max(LIMITS.survey_heads, math.floor(LIMITS.survey_jobs / math.max(1, #found)))
  local spread = math.max(1, math.floor(LIMITS.survey_spread / math.max(1, #found)))
  local tenants = {}
  for _, each in ipairs(found) do
    local tenant = each[1]
    local queue = k('queue', pool, priority, tenant)
    local waiting = ask('ZCARD', queue) or 0
    local settings = ask('HMGET', k('tenant', tenant), 'weight', 'max_running') or {}
    local weight = math.max(number(settings[1] or '1'), 0.001)
    local busy = count(ask('HGET', k('tenant_counts', tenant), 'running'))
    tenants[#tenants + 1] = {
      tenant, tostring(each[2]), tostring(weight), text(settings[2]), busy, waiting, each[3],
      points_of(queue, waiting, heads, spread),
    }
  end
  return { tostring(present), count(state[2]), tenants }
end

local pools = {}
for _, pool in ipairs(ask('SMEMBERS', k('pools')) or {}) do
  local state = ask('HMGET', k('pool', pool), 'sequence', 'queued') or {}
  local described = { pool, count(state[1]), count(state[2]) }
  for _, priority in ipairs(PRIORITIES) do described[#described + 1] = class_of(pool, priority) end
  pools[#pools + 1] = described
  if #pools == LIMITS.survey_pools then break end
end
return { now, running, agents, pools }
