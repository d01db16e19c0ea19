-- Publishes what lies ahead, unless somebody else leads by now.
-- ARGV: now, its id, how long it is good for (ms), the forecast
-- Returns 1, or 0 where it is no longer the one that leads.
if redis.pcall('GET', k('forecaster')) ~= ARGV[2] then return 0 end
redis.call('SET', k('forecast'), ARGV[4], 'PX', tonumber(ARGV[3]))
return 1
