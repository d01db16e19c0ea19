-- What a tenant used, by day.
-- ARGV: now (not needed), tenant, first day (since 1970, UTC), number of days
-- Returns {requests, images, gpu_ms} of each day, flat.
local first, reply = tonumber(ARGV[3]), {}
for day = first, first + tonumber(ARGV[4]) - 1 do
  -- Of a key that is no hash the reply is an error, which has none of the three.
  local counts = redis.pcall('HMGET', k('usage', ARGV[2], day), 'requests', 'images', 'gpu_ms')
  for i = 1, 3 do reply[#reply + 1] = count(counts[i]) end
end
return reply
