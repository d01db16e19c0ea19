-- What every script stands on. The loader puts KEYS_OF, TRANSITIONS, TERMINAL, PRIORITIES and LIMITS before it, from the
-- Python tables of the same names.

local function k(name, ...)
  return string.format(KEYS_OF[name], ...)
end

-- Milliseconds by Redis' clock, or the test's.
local function clock(override)
  if override ~= '' then return tonumber(override) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function read(id)
  local flat = redis.call('HGETALL', k('job', id))
  if #flat == 0 then return nil end
  local job = {}
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  return job
end

-- A finite number, or 0: `nan` and `inf` are numbers to Lua, and errors to Redis.
local function number(text)
  local value = tonumber(text)
  if not value or value ~= value or value == math.huge or value == -math.huge then return 0 end
  return value
end

-- A count: 0 to 2^53, whatever is stored.
local function count(text)
  return math.max(0, math.min(number(text), 9007199254740992))
end

-- Notes in the audit log (`service.tenants.audit`) who changed what; `changes` is JSON. No log keeps a change from being
-- made.
local function note_change(who, action, tenant, changes)
  redis.pcall('XADD', k('audit'), 'MAXLEN', '~', LIMITS.audit_entries, '*', 'who', who, 'action', action,
    'tenant', tenant, 'key', '', 'changes', changes)
end
