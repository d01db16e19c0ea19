-- The objects under a prefix are gone: drops the record that named them. A job that has not ended is left alone.
-- ARGV: now, prefix, job
-- Returns 1 if something was dropped.
local prefix, id = ARGV[2], ARGV[3]
local job = read(id)
if job then
  if not TERMINAL[job.status] or job.object_prefix ~= prefix then return 0 end
  redis.call('ZREM', k('tenant_jobs', job.tenant), id)
  forget_events(id, job, clock(ARGV[1]))
  redis.call('DEL', k('job', id))
end
redis.call('ZREM', k('erasures'), prefix)
return 1
