-- A caller no longer wants a job. Waiting: it ends at once; running: its agent is told; ended: nothing changes.
-- ARGV: now, tenant, job
-- Returns 1, or 0 where this tenant has no such job.
local now, tenant, id = clock(ARGV[1]), ARGV[2], ARGV[3]
local job = read(id)
if not job or job.tenant ~= tenant or job.erase_requested == '1' then return 0 end
if job.status == 'queued' then
  finish(id, job, 'canceled', now, {})
elseif job.status == 'running' and job.cancel_requested ~= '1' then
  redis.call('HSET', k('job', id), 'cancel_requested', '1')
  hide_preview(id)
  redis.call('PUBLISH', k('orders', job.agent_id), 'cancel ' .. job.execution_id)
end
return 1
