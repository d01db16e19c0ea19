-- A caller wants nothing of a job kept. What it asked for goes now, its objects and the rest of the record when
-- `forget` follows; until then only the marks that end it stay.
-- ARGV: now, tenant, job
-- Returns 1, or 0 where this tenant has no such job.
local now, tenant, id = clock(ARGV[1]), ARGV[2], ARGV[3]
local job = read(id)
if not job or job.tenant ~= tenant then return 0 end
if job.erase_requested == '1' then return 1 end
redis.call('ZREM', k('tenant_jobs', tenant), id)
redis.call('HSET', k('job', id), 'erase_requested', '1', 'spec', '', 'labels', '{}', 'images', '[]', 'error', '')
job.erase_requested = '1'
forget_events(id, job, now)
if job.status == 'queued' then
  finish(id, job, 'canceled', now, {})
else
  if job.status == 'running' then
    redis.call('HSET', k('job', id), 'cancel_requested', '1')
    hide_preview(id)
    redis.call('PUBLISH', k('orders', job.agent_id), 'cancel ' .. job.execution_id)
  else
    redis.call('ZADD', k('erasures'), now, job.object_prefix)
  end
  redis.call('PUBLISH', k('changes', id), redis.call('HINCRBY', k('job', id), 'revision', 1) .. ' erased')
end
return 1
