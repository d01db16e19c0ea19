-- Notes how an attempt to send an event went. Safe to repeat.
-- ARGV: now, event, endpoint, claim, verdict, attempt as JSON, ms until the next one or '' (it was the last), ms for which
--       the endpoint is left alone, ms of failures after which it is switched off
-- Verdicts: 'delivered', 'failed', 'gone' (the endpoint wants nothing any more), and 'unsent' (it was not asked).
-- Returns {outcome, why the endpoint was switched off by this or ''}; outcomes: 'recorded', 'fenced' (another sender has
-- the event by now, or it is recorded already), 'erased' (its job is erased).
local now, event, endpoint, verdict = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[5]
local queue, sending = k('endpoint_queue', endpoint), k('endpoint_sending', endpoint)
mend(k('outbox'), 'zset')
mend(queue, 'zset')
mend(sending, 'zset')
mend(k('event', event), 'hash')
mend(k('endpoint', endpoint), 'hash')
local seen = redis.call('HMGET', k('event', event), 'state', 'claims', 'attempts', 'job', 'tenant', 'superseded', 'log')
-- One whose lease ran out does not speak for the sender that has the event now.
local current = seen[2] == ARGV[4] and redis.call('ZREM', sending, event) == 1
if current and seen[5] then redis.pcall('ZREM', k('tenant_sending', seen[5]), event) end

-- What is known of the endpoint; one that nobody knows any more stays unknown.
local function judge_endpoint()
  local name = k('endpoint', endpoint)
  if redis.call('EXISTS', name) == 0 then return '' end
  if verdict == 'delivered' then
    redis.call('HSET', name, 'last_success_ms', now)
    redis.call('HDEL', name, 'failing_since_ms', 'failures', 'hold_until_ms')
    return ''
  end
  local since = number(redis.call('HGET', name, 'failing_since_ms') or '')
  if since <= 0 or since > now then
    since = now
    redis.call('HSET', name, 'failing_since_ms', now)
  end
  if type(redis.pcall('HINCRBY', name, 'failures', 1)) == 'table' then redis.call('HSET', name, 'failures', 1) end
  local hold = math.min(number(ARGV[8]), LIMITS.hold_max_ms)
  if hold > 0 and now + hold > hold_of(endpoint, now) then redis.call('HSET', name, 'hold_until_ms', now + hold) end
  local reason = verdict == 'gone' and 'gone' or (now - since >= tonumber(ARGV[9]) and 'failing') or ''
  if reason == '' or (redis.call('HGET', name, 'disabled_ms') or '') ~= '' then return '' end
  redis.call('HSET', name, 'disabled_ms', now, 'disabled_reason', reason)
  return reason
end

-- What waited for this event, in the order of its job, may go.
local function wake_followers()
  local job = redis.call('HMGET', k('job', seen[4]), 'status', 'told_progress')
  for _, kind in ipairs({ 'progress', job[1] }) do
    local follower = event_of(seen[4], { told_progress = job[2] }, kind)
    if follower and follower ~= event and not in_flight(follower, endpoint, now)
      and number(redis.call('HGET', k('event', follower), 'attempts') or '') == 0 then
      redis.call('ZADD', queue, 'XX', 'LT', now, follower)
    end
  end
end

local function settle(state, next_ms)
  redis.call('HSET', k('event', event), 'state', state, 'next_ms', next_ms,
    'attempts', string.format('%d', count(seen[3]) + 1), 'log', with_attempt(seen[7] or '[]', ARGV[6]))
  if next_ms == '' then
    redis.call('ZREM', queue, event)
  else
    redis.call('ZADD', queue, next_ms, event)
  end
end

local outcome = 'recorded'
if not seen[4] then
  redis.call('ZREM', queue, event)
  outcome = 'erased'
elseif seen[1] ~= 'pending' or (verdict ~= 'delivered' and not current) then
  outcome = 'fenced'
elseif verdict == 'delivered' then
  settle('delivered', '')
elseif seen[6] == '1' then
  settle('superseded', '')
elseif verdict == 'gone' or ARGV[7] == '' then
  settle('failed', '')
else
  settle('pending', string.format('%d', now + tonumber(ARGV[7])))
end
if current and not pcall(wake_followers) then redis.log(redis.LOG_NOTICE, 'darkroom: the job of an event is damaged') end
local off = (outcome == 'fenced' or verdict == 'unsent') and '' or judge_endpoint()
schedule_endpoint(endpoint, now)
return { outcome, off }
