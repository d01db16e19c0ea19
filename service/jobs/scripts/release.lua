-- An agent gives a job back that it could not end.
-- ARGV: now, job, execution, reason: 'drained' (its attempt is given back) or 'engine_lost' (it becomes a suspect;
--       an engine that dies under a suspect running alone is a strike), bell (see take_bell)
-- Returns the job's new status, or 'fenced'.
local now = clock(ARGV[1])
local id, execution, reason = ARGV[2], ARGV[3], ARGV[4]
take_bell(5)
local job = read(id)
if not job or job.status ~= 'running' or job.execution_id ~= execution then return 'fenced' end
local fields = {}
if reason == 'drained' then
  fields.attempt = tostring(number(job.attempt) - 1)
else
  fields.suspect = '1'
  if job.suspect == '1' then fields.strikes = tostring(number(job.strikes) + 1) end
  if number(fields.strikes) >= LIMITS.strikes then
    local why = failure('poison', 'The engine died every time it drew this generation alone.', false)
    why.strikes = fields.strikes
    finish(id, job, 'failed', now, why)
    return job.status
  end
end
take_back(id, job, now, fields)
return job.status
