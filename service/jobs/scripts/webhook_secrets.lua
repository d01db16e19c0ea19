-- What a tenant's webhooks are signed with; the texts are sealed, and nothing to a script.
-- ARGV: now, mode, tenant, and by mode
--   read     –
--   ensure   id, sealed: becomes the present secret where there is none
--   rotate   id, sealed, ms that the earlier ones stay valid, who does it: becomes the present one; with the same id
--            again, nothing
--   seal     id, sealed, sealed before: another text for the same secret, unless it changed meanwhile
-- Returns {id, created_ms, until_ms (0 = the present one), sealed} of each valid secret, the present one first. What
-- cannot be read has an empty text, and is kept until a rotation: it is for people to see.
local now, mode, tenant, id, sealed = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local kept = k('webhook_secrets', tenant)

local function put(secret)
  redis.call('HSET', kept, secret.id, string.format('%d %d %s', secret.created, secret.till, secret.text))
end

local flat = redis.pcall('HGETALL', kept)
if flat.err then
  if mode ~= 'rotate' then return { 'unknown', '0', '0', '' } end
  redis.call('DEL', kept)
  flat = {}
end
local valid, present, known = {}, false, false
for i = 1, #flat, 2 do
  local created, till, text = string.match(flat[i + 1], '^(%d+) (%d+) (%S+)$')
  local secret = { id = flat[i], created = count(created), till = count(till), text = text or '' }
  if secret.till == 0 or secret.till > now then
    valid[#valid + 1] = secret
    present = present or secret.till == 0
    known = known or secret.id == id
  else
    redis.call('HDEL', kept, secret.id)
  end
end

if mode == 'seal' then
  for _, secret in ipairs(valid) do
    if secret.id == id and secret.text == ARGV[6] then
      secret.text = sealed
      put(secret)
    end
  end
elseif (mode == 'ensure' and not present) or (mode == 'rotate' and not known) then
  local earlier = valid
  valid = { { id = id, created = now, till = 0, text = sealed } }
  put(valid[1])
  if mode == 'rotate' then
    note_change(ARGV[7], 'webhook_secret_rotated', tenant,
      string.format('{"secret":"%s","keep_previous_s":%d}', id, tonumber(ARGV[6]) / 1000))
  end
  table.sort(earlier, function(a, b) return a.created > b.created end)
  for _, secret in ipairs(earlier) do
    local till = secret.till
    if mode == 'rotate' then
      till = now + tonumber(ARGV[6])
      if secret.till > 0 then till = math.min(till, secret.till) end
    end
    if secret.text == '' or till <= now or #valid > LIMITS.earlier_secrets then
      redis.call('HDEL', kept, secret.id)
    else
      secret.till = till
      put(secret)
      valid[#valid + 1] = secret
    end
  end
end

table.sort(valid, function(a, b)
  if (a.till == 0) ~= (b.till == 0) then return a.till == 0 end
  if a.created ~= b.created then return a.created > b.created end
  return a.id > b.id
end)
local reply = {}
for _, secret in ipairs(valid) do
  reply[#reply + 1] = secret.id
  reply[#reply + 1] = string.format('%d', secret.created)
  reply[#reply + 1] = string.format('%d', secret.till)
  reply[#reply + 1] = secret.text
end
return reply
