-- Hands events that are due to a sender, each with its job, for as long as a lease: a sender that dies is followed by
-- another. Any number of senders, no lock. Endpoints in the order in which they are due; of each no more than it bears.
-- ARGV: now, lease (ms), most events, most of them at endpoints that are failing, most in flight at an endpoint, and of
--       a tenant (by all senders together)
-- Returns per event {event, endpoint, type, created_ms, attempts, claim, '1' if its endpoint is failing, {job fields …}}.
local now, lease = clock(ARGV[1]), tonumber(ARGV[2])
local most, most_failing = tonumber(ARGV[3]), tonumber(ARGV[4])
local per_endpoint, per_tenant = tonumber(ARGV[5]), tonumber(ARGV[6])
local handed = {}

-- How many events are in flight; those of a sender that died count until their lease runs out.
local function flying(name)
  mend(name, 'zset')
  redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', name, string.format('(%d', now + LIMITS.sending_max_ms), '+inf')
  return redis.call('ZCARD', name)
end

local function let_go_of(event, queue, reason)
  redis.call('ZREM', queue, event)
  mend(k('event', event), 'hash')
  local log = redis.call('HGET', k('event', event), 'log')
  if log then
    redis.call('HSET', k('event', event), 'state', 'failed', 'next_ms', '', 'log', with_attempt(log, unsent(reason, now)))
  end
end

-- Until when an event has to wait for one of its job that is told before it, or nothing.
local function behind(id, job, event, kind, endpoint, queue)
  local started = event_of(id, job, 'started')
  if kind == 'generation.started' then return nil end
  if kind == 'generation.progress' then
    -- A second sender may still send what a first one, that was late, has recorded as delivered.
    return tonumber(redis.call('ZSCORE', queue, started) or '') or in_flight(started, endpoint, now)
  end
  local progress = event_of(id, job, 'progress')
  return in_flight(started, endpoint, now) or (progress and in_flight(progress, endpoint, now))
end

-- Hands one event out; returns whether it did. An entry with nothing behind it is struck out.
local function hand_out(event, endpoint, queue, failing)
  mend(k('event', event), 'hash')
  local seen = redis.call('HMGET', k('event', event), 'job', 'tenant', 'type', 'created_ms', 'attempts', 'claims', 'state',
    'claims_before', 'superseded')
  local id, tenant = seen[1], seen[2]
  if not id or not tenant or not seen[3] or seen[7] ~= 'pending' then
    redis.call('ZREM', queue, event)
    return false
  end
  local flat, job = redis.call('HGETALL', k('job', id)), {}
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  if job.tenant ~= tenant or job.erase_requested == '1' or endpoint_of(tenant, job.webhook_url or '') ~= endpoint then
    drop_event(event, tenant, endpoint)
    return false
  end
  if number(seen[6]) - number(seen[8]) - number(seen[5]) >= LIMITS.senders_lost then
    let_go_of(event, queue, 'sender_lost')
    return false
  end
  if seen[9] == '1' then
    -- Its sender was not heard of again, and its generation has ended.
    redis.call('ZREM', queue, event)
    redis.call('HSET', k('event', event), 'state', 'superseded', 'next_ms', '')
    return false
  end
  local later = behind(id, job, event, seen[3], endpoint, queue)
  if later then
    redis.call('ZADD', queue, math.max(later, now) + 1, event)
    return false
  end
  local claim = string.format('%d', count(seen[6]) + 1)
  redis.call('HSET', k('event', event), 'claims', claim)
  redis.call('ZADD', queue, now + lease, event)
  redis.call('ZADD', k('endpoint_sending', endpoint), now + lease, event)
  redis.call('ZADD', k('tenant_sending', tenant), now + lease, event)
  handed[#handed + 1] = { event, endpoint, seen[3], string.format('%d', count(seen[4])),
    string.format('%d', count(seen[5])), claim, failing and '1' or '0', flat }
  return true
end

-- How many events of an endpoint may be handed out now.
local function room_at(endpoint, tenant, failing)
  local room = (failing and 1 or per_endpoint) - flying(k('endpoint_sending', endpoint))
  room = math.min(room, most - #handed)
  -- Receivers that do not answer may hold half of what a tenant, or a sender, has; the others never wait for them.
  local left = (failing and math.ceil(per_tenant / 2) or per_tenant) - flying(k('tenant_sending', tenant))
  if failing then left = math.min(left, most_failing) end
  return math.min(room, left)
end

local function serve(endpoint)
  local queue = k('endpoint_queue', endpoint)
  mend(queue, 'zset')
  mend(k('endpoint', endpoint), 'hash')
  local seen = redis.call('HMGET', k('endpoint', endpoint), 'tenant', 'disabled_ms', 'failing_since_ms')
  if not seen[1] then
    -- Only events know whose it is.
    local first = redis.call('ZRANGE', queue, 0, 0)[1]
    seen[1] = first and redis.call('HGET', k('event', first), 'tenant') or ''
  end
  if (seen[2] or '') ~= '' then
    for _, event in ipairs(redis.call('ZRANGE', queue, 0, LIMITS.endpoints_looked - 1)) do
      let_go_of(event, queue, 'endpoint_off')
    end
    return schedule_endpoint(endpoint, now)
  end
  if hold_of(endpoint, now) > now then return schedule_endpoint(endpoint, now) end
  local failing = (seen[3] or '') ~= ''
  local room = room_at(endpoint, seen[1], failing)
  if room < 1 then return redis.call('ZADD', k('outbox'), now + LIMITS.full_pause_ms, endpoint) end
  for _, event in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, LIMITS.endpoints_looked)) do
    if room < 1 then break end
    local ok, given = pcall(hand_out, event, endpoint, queue, failing)
    if not ok then
      redis.call('ZREM', queue, event)
    elseif given then
      room = room - 1
      if failing then most_failing = most_failing - 1 end
    end
  end
  schedule_endpoint(endpoint, now)
end

-- A process of an earlier version noted an event where endpoints stand now.
local function adopt(event)
  redis.call('ZREM', k('outbox'), event)
  local seen = redis.call('HMGET', k('event', event), 'job', 'type', 'endpoint')
  local job = seen[1] and not seen[3] and read(seen[1])
  if job then tell(seen[1], job, string.match(seen[2] or '', '^generation%.(%a+)$') or '', now) end
  -- Nobody is to be told of it: there is no other end to what was noted.
  if redis.call('HEXISTS', k('event', event), 'endpoint') == 0 then redis.call('DEL', k('event', event)) end
end

mend(k('outbox'), 'zset')
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', k('outbox'), '-inf', now, 'LIMIT', 0, LIMITS.endpoints_looked)) do
  if #handed >= most then break end
  if not pcall(string.sub(entry, 1, 4) == 'evt_' and adopt or serve, entry) then
    redis.call('ZADD', k('outbox'), now + LIMITS.damaged_pause_ms, entry)
  end
end
return handed
