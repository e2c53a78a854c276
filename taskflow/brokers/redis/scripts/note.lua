-- ARGV: time, notes (JSON), values. A note: [id, token, bytes of the progress or -1, bytes of the checkpoint or -1].
-- Answers A, D or S for each, as settle does.

local notes, values, from = cjson.decode(ARGV[2]), ARGV[3], 1
local ids, answers = {}, {}
for i = 1, #notes do ids[i] = notes[i][1] end
load_rows(ids)
for i = 1, #notes do
  local id, token = notes[i][1], notes[i][2]
  local row = rows[id]
  local is_held = row and row[STATE] == RUNNING and row[TOKEN] == token
  for n, kept in ipairs({ 'progress', 'checkpoints' }) do
    local size = notes[i][2 + n]
    if size >= 0 then
      if is_held then
        call('HSET', P .. kept, id, values:sub(from, from + size - 1))
        row[n == 1 and PROGRESS or CHECKPOINT] = true
        changed[id] = row
      end
      from = from + size
    end
  end
  answers[i] = is_held and 'A' or row and row[SETTLED] == token and 'D' or 'S'
end
flush()
return table.concat(answers)
