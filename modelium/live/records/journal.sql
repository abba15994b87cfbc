CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY,
  began REAL NOT NULL,          -- Unix time; times named *_s below count from here
  ended REAL,
  how TEXT NOT NULL DEFAULT '', -- how it ended: stopped, engines kept; empty if it was killed
  about TEXT NOT NULL           -- JSON: version, policy, parameters, command
);
CREATE TABLE IF NOT EXISTS engines (
  instance TEXT PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  model TEXT NOT NULL,
  runtime TEXT NOT NULL,
  gpus TEXT NOT NULL,           -- JSON
  bytes_per_gpu INTEGER NOT NULL,
  phase TEXT NOT NULL,          -- starting, ready, asleep, ended
  sleep_level INTEGER NOT NULL DEFAULT 0,
  engine TEXT,                  -- JSON of managers.engine.Engine, once it runs
  began REAL NOT NULL,
  ended REAL,
  why TEXT NOT NULL DEFAULT '',
  asleep_bytes INTEGER,         -- asleep: what it was seen to keep of each GPU
  launch TEXT                   -- JSON: what it was started with, as live/launch.py has it
);
CREATE INDEX IF NOT EXISTS engines_alive ON engines (phase) WHERE phase != 'ended';
CREATE TABLE IF NOT EXISTS decisions (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  at_s REAL NOT NULL,
  kind TEXT NOT NULL,
  model TEXT NOT NULL,
  instance TEXT NOT NULL,
  gpus TEXT NOT NULL,           -- names joined by a blank
  reason TEXT NOT NULL,
  end_s REAL,
  error TEXT NOT NULL DEFAULT '',
  tier TEXT NOT NULL DEFAULT '',
  stages TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX IF NOT EXISTS decisions_of ON decisions (run, at_s);
CREATE TABLE IF NOT EXISTS requests (
  run INTEGER NOT NULL REFERENCES runs (id),
  id TEXT NOT NULL,
  arrival_s REAL NOT NULL,
  model TEXT NOT NULL,
  organization TEXT NOT NULL,
  slo_class TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  outcome TEXT NOT NULL,        -- completed, failed, cancelled (its client left), refused
  why TEXT NOT NULL,
  instance TEXT,
  first_token_s REAL,
  finish_s REAL,
  cold TEXT NOT NULL,
  retries INTEGER NOT NULL,
  slo_met INTEGER NOT NULL,
  gpu_seconds REAL NOT NULL     -- time at the engine x its GPUs / requests there
);
CREATE INDEX IF NOT EXISTS requests_of ON requests (run, arrival_s);
CREATE TABLE IF NOT EXISTS timeline (
  run INTEGER NOT NULL REFERENCES runs (id),
  gpu TEXT NOT NULL,
  start_s REAL NOT NULL,
  end_s REAL NOT NULL,          -- of what has not ended: how far it has come
  kind TEXT NOT NULL,
  model TEXT NOT NULL,
  instance TEXT NOT NULL,
  value REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS timeline_of ON timeline (run, end_s);
CREATE TABLE IF NOT EXISTS usage ( -- of requests whose own rows were deleted
  day TEXT NOT NULL,            -- of their arrival, in UTC
  organization TEXT NOT NULL,
  model TEXT NOT NULL,
  requests INTEGER NOT NULL,    -- but for refused ones
  prompt_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  gpu_seconds REAL NOT NULL,
  PRIMARY KEY (day, organization, model)
);
CREATE TABLE IF NOT EXISTS needs (
  model TEXT NOT NULL,
  gpu_kind TEXT NOT NULL,
  bytes_per_gpu INTEGER NOT NULL,
  PRIMARY KEY (model, gpu_kind)
);
CREATE TABLE IF NOT EXISTS asleep (
  model TEXT NOT NULL,
  gpu_kind TEXT NOT NULL,
  bytes_per_gpu INTEGER NOT NULL, -- what a sleeping copy was seen to keep of each GPU
  PRIMARY KEY (model, gpu_kind)
);
CREATE TABLE IF NOT EXISTS durations (
  model TEXT NOT NULL,
  what TEXT NOT NULL,           -- disk, host (loads), sleep-1, sleep-2 (wakes)
  seconds REAL NOT NULL,        -- running mean, the latest counts a third
  PRIMARY KEY (model, what)
);
CREATE TABLE IF NOT EXISTS settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL           -- JSON
);
