-- Ends a job with the result of one execution: once, whoever repeats it.
-- ARGV: now, job, execution, status, images drawn, device time (ms), bell (see take_bell), document fields …
-- Returns 'committed', 'already_committed' or 'fenced'. A lease that has run out but was not taken back still commits.
local now = clock(ARGV[1])
local id, execution, status = ARGV[2], ARGV[3], ARGV[4]
local job = read(id)
if not job or job.execution_id ~= execution then return 'fenced' end
if job.status ~= 'running' then
  return job.committed_by == execution and 'already_committed' or 'fenced'
end
local fields = {}
for i = take_bell(7), #ARGV, 2 do fields[ARGV[i]] = ARGV[i + 1] end
if job.erase_requested == '1' then status = 'canceled' end
finish(id, job, status, now, fields)
redis.call('HSET', k('job', id), 'committed_by', execution)
meter(job.tenant, now, { images = ARGV[5], gpu_ms = ARGV[6] })
return 'committed'
