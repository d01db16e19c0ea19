-- Webhooks: which events a job leaves for the sender. A job has one endpoint (its tenant and the exact URL) and at most
-- three events: `started`, the latest `progress`, and its end. Loaded behind `base`.

-- Makes room for a value of this type: what else stands at a key of ours was written by somebody else.
local function mend(name, kind)
  local found = redis.call('TYPE', name).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', name) end
end

local function endpoint_of(tenant, url)
  return 'ep_' .. redis.sha1hex(tenant .. '\n' .. url)
end

-- Until when an endpoint is to be left alone, or 0: never longer than a sender may have asked for.
local function hold_of(endpoint, now)
  local hold = number(redis.call('HGET', k('endpoint', endpoint), 'hold_until_ms'))
  return hold <= now + LIMITS.hold_max_ms and hold or 0
end

-- Notes when a sender has to look at an endpoint again: when its first event is due, and it may be called.
local function schedule_endpoint(endpoint, now)
  local first = redis.call('ZRANGE', k('endpoint_queue', endpoint), 0, 0, 'WITHSCORES')
  if not first[1] then return redis.call('ZREM', k('outbox'), endpoint) end
  redis.call('ZADD', k('outbox'), math.max(tonumber(first[2]), hold_of(endpoint, now)), endpoint)
end

-- A log of attempts with one more, both as JSON; the oldest leave. A damaged log begins anew.
local function with_attempt(log, attempt)
  local ok, text = pcall(function()
    local attempts = cjson.decode(log)
    attempts[#attempts + 1] = cjson.decode(attempt)
    while #attempts > LIMITS.attempts_logged do table.remove(attempts, 1) end
    return cjson.encode(attempts)
  end)
  return ok and text or '[' .. attempt .. ']'
end

-- What a log says where nothing was sent.
local function unsent(reason, now)
  return string.format('{"at_ms":%d,"reason":"%s","duration_ms":0}', now, reason)
end

-- Whether a sender has this event in hand: until when, or nothing. No lease is longer than that, unless the clock was set
-- back since.
local function in_flight(event, endpoint, now)
  local lease = number(redis.call('ZSCORE', k('endpoint_sending', endpoint), event) or '')
  return lease > now and lease <= now + LIMITS.sending_max_ms and lease or nil
end

-- Makes an endpoint known, or notes that it is still used.
local function keep_endpoint(tenant, url, now)
  local endpoint = endpoint_of(tenant, url)
  mend(k('endpoint', endpoint), 'hash')
  mend(k('tenant_endpoints', tenant), 'zset')
  redis.call('ZADD', k('tenant_endpoints', tenant), now, endpoint)
  if redis.call('HGET', k('endpoint', endpoint), 'url') ~= url then
    redis.call('HSET', k('endpoint', endpoint), 'tenant', tenant, 'url', url, 'created_ms', now)
  end
  return endpoint
end

-- Whether a tenant may have endpoints with all these URLs (a set); of others that were unused for long and have nothing
-- to send the oldest make room.
local function endpoints_fit(tenant, urls, now)
  if not next(urls) then return true end
  local index = k('tenant_endpoints', tenant)
  mend(index, 'zset')
  local asked, more = {}, 0
  for url in pairs(urls) do
    local endpoint = endpoint_of(tenant, url)
    asked[endpoint] = true
    if not redis.call('ZSCORE', index, endpoint) then more = more + 1 end
  end
  if more == 0 then return true end
  local surplus = redis.call('ZCARD', index) + more - LIMITS.endpoints
  if surplus < 1 then return true end
  for _, old in ipairs(redis.call('ZRANGE', index, 0, LIMITS.window + more - 1)) do
    local used = number(redis.call('ZSCORE', index, old))
    local idle = used < now - LIMITS.endpoint_idle_ms and redis.call('EXISTS', k('endpoint_queue', old)) == 0
    if idle and not asked[old] then
      redis.call('ZREM', index, old)
      redis.call('DEL', k('endpoint', old), k('endpoint_sending', old))
      surplus = surplus - 1
    end
  end
  return surplus < 1
end

local function wants(job, kind)
  local events = job.webhook_events or ''
  if events == '' then return TERMINAL[kind] end
  return string.find(events, '"' .. (TERMINAL[kind] and 'completed' or kind) .. '"', 1, true) ~= nil
end

-- The ids of a job's events of these kinds; progress has the revision at which it was told.
local function event_of(id, job, kind)
  if kind ~= 'progress' then return 'evt_' .. id .. '_' .. kind end
  return (job.told_progress or '') ~= '' and 'evt_' .. id .. '_progress_' .. job.told_progress or nil
end

local function drop_event(event, tenant, endpoint)
  redis.call('DEL', k('event', event))
  redis.call('ZREM', k('endpoint_queue', endpoint), event)
  redis.call('ZREM', k('endpoint_sending', endpoint), event)
  redis.call('ZREM', k('tenant_sending', tenant), event)
  redis.call('ZREM', k('tenant_deliveries', tenant), event)
  -- Where processes of an earlier version note events.
  redis.call('ZREM', k('outbox'), event)
end

-- The end of a job takes the place of what was not sent yet. What is being sent is let finish, and not tried again.
local function supersede(id, job, endpoint, now, ttl)
  for _, kind in ipairs({ 'started', 'progress' }) do
    local earlier = event_of(id, job, kind)
    if earlier and redis.call('EXISTS', k('event', earlier)) == 1 then
      redis.call('PEXPIRE', k('event', earlier), ttl)
      if in_flight(earlier, endpoint, now) then
        redis.call('HSET', k('event', earlier), 'superseded', '1')
      elseif redis.call('ZREM', k('endpoint_queue', endpoint), earlier) == 1 then
        redis.call('HSET', k('event', earlier), 'state', 'superseded', 'next_ms', '')
      end
    end
  end
end

-- A job has at most one event of progress: one that waits is sent with what is true then, an earlier one is forgotten.
-- Returns whether there is to be a new one.
local function replace_progress(id, job, endpoint, now)
  local earlier = event_of(id, job, 'progress')
  if earlier then
    if redis.call('ZSCORE', k('endpoint_queue', endpoint), earlier) then return false end
    drop_event(earlier, job.tenant, endpoint)
  end
  job.told_progress = job.revision
  redis.call('HSET', k('job', id), 'told_progress', job.revision)
  return true
end

local function note_event(id, job, kind, now)
  local endpoint = keep_endpoint(job.tenant, job.webhook_url, now)
  mend(k('outbox'), 'zset')
  mend(k('endpoint_queue', endpoint), 'zset')
  mend(k('endpoint_sending', endpoint), 'zset')
  mend(k('tenant_deliveries', job.tenant), 'zset')
  local ttl = string.format('%d', count(job.retain_ms) + LIMITS.event_slack_ms)
  if TERMINAL[kind] then
    supersede(id, job, endpoint, now, ttl)
  elseif kind == 'progress' and not replace_progress(id, job, endpoint, now) then
    return
  end
  local event = event_of(id, job, kind)
  mend(k('event', event), 'hash')
  if redis.call('HEXISTS', k('event', event), 'endpoint') == 1 then return end
  local off = (redis.call('HGET', k('endpoint', endpoint), 'disabled_ms') or '') ~= ''
  redis.call('HSET', k('event', event), 'job', id, 'tenant', job.tenant, 'endpoint', endpoint,
    'type', 'generation.' .. kind, 'revision', job.revision, 'created_ms', now, 'attempts', '0', 'claims', '0',
    'state', off and 'failed' or 'pending', 'next_ms', off and '' or now,
    'log', off and with_attempt('[]', unsent('endpoint_off', now)) or '[]')
  if TERMINAL[kind] then redis.call('PEXPIRE', k('event', event), ttl) end
  redis.call('ZADD', k('tenant_deliveries', job.tenant), now, event)
  redis.call('ZREMRANGEBYRANK', k('tenant_deliveries', job.tenant), 0, -LIMITS.deliveries - 1)
  if not off then redis.call('ZADD', k('endpoint_queue', endpoint), now, event) end
  schedule_endpoint(endpoint, now)
end

-- The transactional outbox: notes an event in the step that makes it true; its body is rendered from the document when
-- it is sent. `kind`: started, progress, or how the job ended. Nothing that is wrong here keeps a job from going on.
local function tell(id, job, kind, now)
  if (job.webhook_url or '') == '' or job.erase_requested == '1' or not wants(job, kind) then return end
  pcall(note_event, id, job, kind, now)
end

-- Takes everything about a job's events away: what waits is not sent, what was sent is no longer listed.
local function forget_events(id, job, now)
  if (job.webhook_url or '') == '' then return end
  pcall(function()
    local endpoint = endpoint_of(job.tenant, job.webhook_url)
    for _, kind in ipairs({ 'started', 'progress', TERMINAL[job.status] and job.status or 'canceled' }) do
      local event = event_of(id, job, kind)
      if event then drop_event(event, job.tenant, endpoint) end
    end
    schedule_endpoint(endpoint, now)
  end)
end
