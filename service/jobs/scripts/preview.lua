-- Shows what a running job looks like so far. Only the execution that holds it may, and not once it is canceled.
-- ARGV: now, job, execution, how long it is kept (ms), picture
-- Returns 1, or 0 where it is not shown.
local id, execution = ARGV[2], ARGV[3]
local seen = redis.call('HMGET', k('job', id), 'status', 'execution_id', 'cancel_requested', 'previewed')
if seen[1] ~= 'running' or seen[2] ~= execution or seen[3] == '1' then return 0 end
redis.call('SET', k('preview', id), ARGV[5], 'PX', ARGV[4])
if seen[4] ~= '1' then
  redis.call('HSET', k('job', id), 'previewed', '1')
  redis.call('PUBLISH', k('changes', id), redis.call('HINCRBY', k('job', id), 'revision', 1) .. ' running')
end
return 1
