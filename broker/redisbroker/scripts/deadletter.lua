-- A dead letter as settle writes it: a line of numbers (format, when it died, attempts, failures, deaths, not before, and
-- the lengths of reason, detail, reply and node), those texts, and the entry.
--
-- letter returns the part before the entry and the entry.
local function letter(v)
  local line, g, d, y, n = string.match(v, '^(1 %d+ %d+ %d+ %d+ %d+ (%d+) (%d+) (%d+) (%d+)\n)')
  local at = #line + g + d + y + n
  return string.sub(v, 1, at), string.sub(v, at + 1)
end

-- brief returns a dead letter without the message's body.
local function brief(v)
  local before, entry = letter(v)
  local _, _, _, _, size = head(entry)
  return before .. string.sub(entry, 1, #entry - size)
end

-- move counts a record that is kept to another slot; nil stands for none.
local function move(counts, from, to)
  if from then redis.call('HINCRBY', counts, 'e' .. fmt(from), -1) end
  if to then redis.call('HINCRBY', counts, 'e' .. fmt(to), 1) end
end

-- expiry returns the slot that a record expires at, nil if it does not.
local function expiry(key, ms)
  local ttl = redis.call('PTTL', key)
  if ttl >= 0 then return math.floor((ms + ttl) / SLOT + 0.5) end
end
