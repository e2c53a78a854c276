-- ARGV: time, settlements (JSON), results. A settlement: [id, token, what, ...] with what
--   0 complete, bytes of the result or -1 · 1 retry, delay, error · 2 snooze, delay, reason, error or false · 3 release
--   4 bury, error, spent (0 or 1) · 5 expire, reason · 6 cancel
-- Answers two characters for each: A applied, D done already, S stale; then the digit of the state.

local settlements, results, from = cjson.decode(ARGV[2]), ARGV[3], 1
local ids, answers = {}, {}
even_when_full()
for i = 1, #settlements do ids[i] = settlements[i][1] end
load_rows(ids)
local now_text = num(now)

local function apply(id, row, word)
  local what = word[3]
  if what == 0 then
    row[ATTEMPTS] = row[ATTEMPTS] + 1
    if word[4] >= 0 then
      add('HSET', P .. 'results', id, results:sub(from, from + word[4] - 1))
      add('ZADD', P .. 'result-ages', now_text, member(id, row))
      row[RESULT] = 1
    end
    finish(id, row, SUCCEEDED)
  elseif what == 1 then
    add_error(id, row, word[5])
    row[ATTEMPTS] = row[ATTEMPTS] + 1
    requeue(id, row, word[4])
  elseif what == 2 then
    if word[6] then add_error(id, row, word[6]) end
    row[SNOOZES] = row[SNOOZES] + 1
    row[REASON] = word[5]
    requeue(id, row, word[4])
  elseif what == 3 then
    requeue(id, row, nil)
  elseif what == 4 then
    add_error(id, row, word[4])
    row[ATTEMPTS] = row[ATTEMPTS] + word[5]
    finish(id, row, DEAD)
  elseif what == 5 then
    row[REASON] = word[4]
    finish(id, row, EXPIRED)
  else
    finish(id, row, CANCELLED)
  end
end

for i = 1, #settlements do
  local word = settlements[i]
  local id, token = word[1], word[2]
  local row = rows[id]
  if row and row[STATE] == RUNNING and row[TOKEN] == token then
    row[SETTLED] = token
    end_claim(id, row, word[3] == 3)
    apply(id, row, word)
    answers[i] = 'A' .. row[STATE]
  elseif row and row[SETTLED] == token then
    answers[i] = 'D' .. row[STATE]
  else
    answers[i] = 'S0'
  end
  if word[3] == 0 and word[4] > 0 then from = from + word[4] end
end
free()
flush()
return table.concat(answers)
