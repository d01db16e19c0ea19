-- How many jobs wait and run, and how long the oldest has waited, by pool and priority: for gauges, not for callers.
-- ARGV: now, most pools, most tenants of a class that are looked at
-- Returns for each pool {name, running, depth, age (ms) of each of PRIORITIES …}; an age of -1: nothing waits.
local now, pools, tenants = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- What a read gives, or nothing where somebody else left something of another type there.
local function seen(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then return nil end
  return reply
end

-- Those that a claim may choose, and those held at their cap: both have jobs waiting.
local function waiting(pool, priority)
  local found = seen('ZRANGE', k('active', pool, priority), 0, tenants - 1) or {}
  for _, tenant in ipairs(seen('SRANDMEMBER', k('held', pool, priority), tenants) or {}) do
    found[#found + 1] = tenant
  end
  return found
end

local function class(pool, priority)
  local depth, first, oldest = 0, nil, nil
  for _, tenant in ipairs(waiting(pool, priority)) do
    local queue = k('queue', pool, priority, tenant)
    depth = depth + count(seen('ZCARD', queue))
    local head = seen('ZRANGE', queue, 0, 0, 'WITHSCORES') or {}
    if head[1] and (not first or number(head[2]) < first) then first, oldest = number(head[2]), head[1] end
  end
  local created = oldest and number(seen('HGET', k('job', oldest), 'created_ms')) or 0
  return depth, created > 0 and math.max(0, now - created) or -1
end

local answer = {}
for at, pool in ipairs(seen('SMEMBERS', k('pools')) or {}) do
  if at > pools then break end
  local line = { pool, count(seen('HGET', k('pool', pool), 'running')) }
  for _, priority in ipairs(PRIORITIES) do
    line[#line + 1], line[#line + 2] = class(pool, priority)
  end
  answer[#answer + 1] = line
end
return answer
