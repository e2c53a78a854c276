-- ARGV: time, jobs (JSON), lanes (JSON), bounds (JSON), bodies.
-- A job: [id, lane, priority, delay, expires, key or false, batch or false, why it expires, bytes of its body].
-- Answers [accepted, id or 0, retry after] for each, JSON: 0 new, 1 same id, 2 same key, 3 queue full, 4 gate full.

local jobs, texts, bounds = cjson.decode(ARGV[2]), cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
local bodies, from = ARGV[5], 1
local ids, refused, answers, lane_ids = {}, {}, {}, {}
for i = 1, #jobs do ids[i] = jobs[i][1] end
load_rows(ids)
for i = 1, #texts do lane_ids[i] = '0' .. texts[i] end
load_lanes(lane_ids)
local seq = call('HINCRBY', P .. 'numbers', 'seq', #jobs) - #jobs
local batches = {} -- named by these jobs → whether one of them is new

local function refusal(names, queue, bound) -- why there is no place, and when there should be
  local accepted, line, over = 3, queue.name, queue.count[READY] + queue.count[SCHEDULED] - bound
  if over < 0 then
    local half = max(1, floor(bound / 2))
    for i = 1, #names do
      accepted, line, over = 4, 'gate ' .. names[i], queued_at(gate_of(names[i]), queue) - half
      if over >= 0 then break end
    end
    if over < 0 then return nil end
  else
    line = 'queue ' .. line
  end
  local ahead = (refused[line] or 0) + 1 -- in this batch: they will come back too
  refused[line] = ahead
  local drain, wait = drain_per_s(queue), 5
  if drain >= 0.001 then wait = min(max(0.05, (over + ahead) / drain), 60) end
  return accepted, wait
end

local function accept(job)
  local id, text, priority, delay, expires, key, batch, why = unpack(job)
  if batch then batches[batch] = batches[batch] or false end
  if rows[id] then return '[1,0,0]' end
  if key then
    local holder = call('HGET', P .. 'keys', key)
    if holder then return '[2,' .. cjson.encode(holder) .. ',0]' end
  end
  text = texts[text + 1]
  local words = words_of(text)
  local queue, names, bound = queue_of(words[1]), words[3], bounds[words[1]]
  if bound then
    local accepted, wait = refusal(names, queue, bound)
    if accepted then return format('[%d,0,%.17g]', accepted, wait) end
  end
  seq = seq + 1
  local due = delay > 0 and now + delay or now
  local state = due <= now and READY or SCHEDULED
  local row = {
    seq, state, text, priority, due, due, due + expires, due, now,
    0, 0, 0, 0, false, false, false, false,
    '', false, key, batch, why, false, false, false, false,
  }
  rows[id], changed[id] = row, row
  queue.had, queue.dirty = true, true
  queue.count[state] = queue.count[state] + 1
  if key then call('HSET', P .. 'keys', key, id) end
  if batch then batches[batch] = true end
  for i = 1, #names do add_queued(gate_of(names[i]), queue, 1) end
  add('ZADD', P .. 'expiries', num(row[EXPIRES]), member(id, row))
  add('ZADD', P .. 'jobs', seq, id)
  place(id, row)
  return nil
end

for i = 1, #jobs do
  local size = jobs[i][9]
  local answer = accept(jobs[i])
  if not answer then
    add('HSET', P .. 'body', jobs[i][1], bodies:sub(from, from + size - 1))
    answer = '0'
  end
  answers[i] = answer
  from = from + size
end
for batch, is_joined in pairs(batches) do
  if is_joined or is_unfinished(batch) then call('ZADD', P .. 'batches', num(now), batch) end
end
flush()
return '[' .. table.concat(answers, ',') .. ']'
