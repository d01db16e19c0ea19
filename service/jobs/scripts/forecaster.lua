-- Who looks ahead for all gateways: one process at a time, until its lease runs out or it withdraws.
-- ARGV: now, its id, lease (ms), '1' to withdraw
-- Returns {now, 'leads'}, or {now, 'follows', what the one that leads has published (see publish.lua), or ''}.
local now = clock(ARGV[1])
local holder, lease = ARGV[2], tonumber(ARGV[3])
-- pcall: of whatever type somebody made it.
local present = redis.pcall('GET', k('forecaster'))
if ARGV[4] == '1' then
  if present == holder then redis.call('DEL', k('forecaster')) end
  return { now, 'follows', '' }
end
-- A lease that never ends was not taken by one of us.
if type(present) ~= 'string' or present == holder or redis.call('PTTL', k('forecaster')) == -1 then
  redis.call('SET', k('forecaster'), holder, 'PX', lease)
  return { now, 'leads' }
end
-- Nobody parses more than is ever published.
local published = redis.pcall('GETRANGE', k('forecast'), 0, LIMITS.forecast_bytes)
return { now, 'follows', type(published) == 'string' and published or '' }
