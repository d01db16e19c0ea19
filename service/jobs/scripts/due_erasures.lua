-- Hands out object prefixes that are due, each to one caller for a while: one that dies is followed by another.
-- ARGV: now, most, for how long (ms)
local now = clock(ARGV[1])
local due = redis.call('ZRANGEBYSCORE', k('erasures'), '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, prefix in ipairs(due) do redis.call('ZADD', k('erasures'), now + tonumber(ARGV[3]), prefix) end
return due
