-- How many jobs ended lately, of a pool or of a tenant.
-- ARGV: now, 'pool' or 'tenant', its name
-- Returns {now, ended in the present slot of time, in the one before it, …}.
local now = clock(ARGV[1])
local slot = math.floor(now / LIMITS.ended_slot_ms)
local counters = {}
for back = 0, LIMITS.ended_slots - 1 do counters[#counters + 1] = k('ended', ARGV[2], ARGV[3], slot - back) end
local reply = { now }
for _, ended in ipairs(redis.call('MGET', unpack(counters))) do reply[#reply + 1] = count(ended) end
return reply
