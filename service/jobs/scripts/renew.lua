-- Keeps all claims of an agent, writes their progress, and brings back what was decided about them meanwhile.
-- ARGV: now, agent id, lease (ms), then per claim: job, execution, step, steps, phase
-- Returns per claim 'ok', 'cancel' or 'fenced'. A lease that has run out but was not taken back is still renewed.
local now, lease = clock(ARGV[1]), tonumber(ARGV[3])
local answers = {}
for i = 4, #ARGV, 5 do
  local id, execution, step, steps, phase = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local seen = redis.call('HMGET', k('job', id), 'status', 'execution_id', 'cancel_requested', 'progress_step', 'phase',
    'webhook_events', 'told_progress_ms')
  if seen[1] ~= 'running' or seen[2] ~= execution then
    answers[#answers + 1] = 'fenced'
  else
    redis.call('ZADD', k('leases'), now + lease, id)
    redis.call('HSET', k('job', id), 'lease_ms', string.format('%d', now + lease))
    if seen[4] ~= step or seen[5] ~= phase then
      redis.call('HSET', k('job', id), 'progress_step', step, 'progress_steps', steps, 'phase', phase)
      redis.call('PUBLISH', k('changes', id), redis.call('HINCRBY', k('job', id), 'revision', 1) .. ' running')
      if seen[6] and string.find(seen[6], '"progress"', 1, true) and now - number(seen[7]) >= LIMITS.progress_gap_ms then
        redis.call('HSET', k('job', id), 'told_progress_ms', now)
        tell(id, read(id), 'progress', now)
      end
    end
    answers[#answers + 1] = seen[3] == '1' and 'cancel' or 'ok'
  end
end
return answers
