package timeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/timeline/timelinetest"
)

const (
	us = 1_000
	ms = 1_000_000
	s  = 1_000_000_000
	// begin is an odd stamp of a machine that has been up for 90 days: times
	// must not lose nanoseconds to it.
	begin = 90*24*3600*s + 123_456_789
)

func cellOf(backend, mode string, concurrency, requests int) results.Cell {
	load := fmt.Sprintf("gpt2/chat/%s/c%d", mode, concurrency)
	return results.Cell{
		ID: load + "/" + backend + "/r0", Load: load, Backend: backend, Model: "gpt2", Task: "chat", Mode: mode,
		Concurrency: concurrency, Requests: requests, Sampling: bench.Sampling{TopP: 1, MaxTokens: 8},
	}
}

type builder struct {
	*testing.T
	w *results.Writer
	m *results.Manifest
}

func newRun(t *testing.T, cells ...results.Cell) (*builder, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	m := &results.Manifest{
		Schema: results.Schema, RunID: "id", Created: time.Unix(1e9, 0).UTC(), Cells: cells,
		Clock: results.Clock{Source: "CLOCK_MONOTONIC", UncertaintyNS: 20, WallNS: 1_700_000_000 * s, MonotonicNS: begin, BootID: "first"},
	}
	m.Environment.GPUs = []results.GPU{{Device: "gpu0", Name: "NVIDIA H100"}}
	w, err := results.Create(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	return &builder{t, w, m}, dir
}

func (b *builder) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *builder) event(c results.Cell, attempt int, state results.CellState, t int64, more ...func(*results.CellEvent)) {
	b.Helper()
	e := results.CellEvent{Cell: c.ID, Attempt: attempt, State: state, T: t}
	for _, f := range more {
		f(&e)
	}
	b.ok(b.w.Event(e))
}

func (b *builder) request(c results.Cell, i int, tr bench.Trace, more ...func(*results.Record)) {
	b.Helper()
	r := results.Record{Cell: c.ID, Attempt: 1, Index: i, Prompt: "chat-03", Seed: 1<<63 + 1, Trace: tr}
	for _, f := range more {
		f(&r)
	}
	b.ok(b.w.Request(&r))
}

func (b *builder) sample(c results.Cell, t int64, subject string, values map[string]float64) {
	b.Helper()
	b.ok(b.w.Sample(&results.Sample{T: t, Cell: c.ID, Subject: subject, Values: values}))
}

// write writes the trace of a run into a file.
func write(t *testing.T, dir string) (string, Summary) {
	t.Helper()
	run, err := results.ReadEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	sum, err := Write(&b, run)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "out.json")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file, sum
}

// slice is one that was read back, times in nanoseconds.
type slice struct {
	pid, tid int
	kind     string
	name     string
	from, to int64
	parent   *slice
	args     map[string]any
}

type counter struct {
	pid   int
	name  string
	t     int64
	value float64
}

// readBack reads a trace by the rules of its format, without the code that
// wrote it: events of one track in order of their times, those of one time in
// the order of the file.
func readBack(t *testing.T, file string) (all []*slice, counters []counter, names map[[2]int]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var trace struct {
		TraceEvents []struct {
			Ph, Name, Cat, S string
			Pid, Tid         int
			Ts               json.Number
			Args             map[string]any
		}
	}
	if err := json.Unmarshal(text, &trace); err != nil {
		t.Fatal(err)
	}
	ns := func(ts json.Number) int64 {
		whole, part, _ := strings.Cut(string(ts), ".")
		var a, b int64
		if _, err := fmt.Sscan(whole, &a); err != nil {
			t.Fatalf("ts %q: %v", ts, err)
		}
		if _, err := fmt.Sscan("1"+(part + "000")[:3], &b); err != nil || len(part) > 3 {
			t.Fatalf("ts %q: %v", ts, err)
		}
		return a*1000 + b - 1000
	}
	names = map[[2]int]string{}
	events := trace.TraceEvents
	slices.SortStableFunc(events, func(a, b struct {
		Ph, Name, Cat, S string
		Pid, Tid         int
		Ts               json.Number
		Args             map[string]any
	},
	) int {
		return int(max(-1, min(1, ns(a.Ts)-ns(b.Ts))))
	})
	open := map[[2]int][]*slice{}
	for _, e := range events {
		track, at := [2]int{e.Pid, e.Tid}, ns(e.Ts)
		stack := open[track]
		switch e.Ph {
		case "M":
			if name, ok := e.Args["name"].(string); ok {
				names[track] = name
			}
		case "C":
			for unit, v := range e.Args {
				value, ok := v.(float64)
				if !ok && v == "NaN" {
					value = math.NaN()
				}
				counters = append(counters, counter{e.Pid, e.Name + " " + unit, at, value})
			}
		case "B", "i":
			sl := &slice{pid: e.Pid, tid: e.Tid, kind: e.Cat, name: e.Name, from: at, to: at, args: e.Args}
			if len(stack) > 0 {
				sl.parent = stack[len(stack)-1]
			}
			all = append(all, sl)
			if e.Ph == "B" {
				open[track] = append(stack, sl)
			}
		case "E":
			if len(stack) == 0 {
				t.Fatalf("track %v: an end at %d without a begin", track, at)
			}
			stack[len(stack)-1].to = at
			open[track] = stack[:len(stack)-1]
		default:
			t.Fatalf("event %q", e.Ph)
		}
	}
	for track, stack := range open {
		if len(stack) > 0 {
			t.Fatalf("track %v: %q has no end", track, stack[0].name)
		}
	}
	return all, counters, names
}

// sound checks what holds for every trace.
func sound(t *testing.T, all []*slice) {
	t.Helper()
	last := map[[2]int]*slice{}
	for _, sl := range all {
		switch sl.kind {
		case "token", "event":
			in := sl.parent
			if in != nil && in.kind == "phase" {
				in = in.parent
			}
			if in == nil || in.kind != "request" || sl.from < in.from || sl.from > in.to {
				t.Errorf("%s at %d is in no request", sl.name, sl.from)
			}
		case "phase":
			if sl.parent != nil && (sl.parent.kind != "request" || sl.from < sl.parent.from || sl.to > sl.parent.to) {
				t.Errorf("%s of %d is not in its request", sl.name, sl.from)
			}
		}
		if sl.parent != nil {
			continue
		}
		track := [2]int{sl.pid, sl.tid}
		if before := last[track]; before != nil && before.to > sl.from {
			t.Errorf("track %v: %s of %d begins before %s ends", track, sl.name, sl.from, before.name)
		}
		last[track] = sl
	}
}

func named(all []*slice, kind string) (names []string) {
	for _, sl := range all {
		if sl.kind == kind {
			names = append(names, fmt.Sprintf("%s %d %d", sl.name, sl.from, sl.to))
		}
	}
	return names
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// marks counts one token each.
func marks(at ...int64) (list []bench.Mark) {
	for i, t := range at {
		list = append(list, bench.Mark{T: t, N: int32(i + 1)})
	}
	return list
}

// TestPhases: every part of a request is where its stamps say, bears the name of
// all that is in it, and says so where only its length is known.
func TestPhases(t *testing.T) {
	for name, c := range map[string]struct {
		mode string
		rec  results.Record
		want []string // name from to, relative to the request
	}{
		"a stream over HTTP": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, FirstByte: 150, End: 200, Marks: marks(160, 190)}},
			[]string{"send 0 10", "queue, prefill to first token 10 60", "decode 60 90", "end of the answer 90 100"},
		},
		"one token, at the end": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, End: 200, Marks: marks(200)}},
			[]string{"queue, prefill to first token 0 100"},
		},
		"in process": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, End: 200, Marks: marks(160, 200), Phases: bench.Phases{Tokenize: 9, Queue: 15, Prefill: 33, Decode: 30}}},
			[]string{"tokenize and submit 0 10", "queue 10 25 by length", "prefill to first token 25 60", "decode 60 100"},
		},
		"in process, most of the queue while decoding": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, End: 200, Marks: marks(160, 200), Phases: bench.Phases{Tokenize: 9, Queue: 70, Prefill: 33, Decode: 30}}},
			[]string{"tokenize and submit 0 10", "queue 10 27 by length", "prefill to first token 27 60", "decode 60 100"},
		},
		"a server that tells its queue": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, End: 200, Marks: marks(160, 190), Server: bench.Server{Tokenize: 1, Queue: 5, Prefill: 30}}},
			[]string{"send 0 10", "tokenize 10 11 by length", "queue 11 16 by length", "prefill to first token 16 60", "decode 60 90", "end of the answer 90 100"},
		},
		"failed before a token": {
			"stream",
			results.Record{Class: bench.Timeout, Trace: bench.Trace{Start: 100, Sent: 110, End: 200}},
			[]string{"send 0 10", "waiting for a first token 10 100"},
		},
		"a sync answer": {
			"sync",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, FirstByte: 190, End: 200, Marks: []bench.Mark{{T: 200, N: 5}}}},
			[]string{"send 0 10", "queue, prefill and decode 10 90", "end of the answer 90 100"},
		},
		"a sync answer in process": {
			"sync",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 110, End: 200, Marks: []bench.Mark{{T: 200, N: 5}}, Phases: bench.Phases{Tokenize: 9, Queue: 5, Prefill: 33, Decode: 30, Sampling: 4, Detokenize: 1}}},
			[]string{"tokenize and submit 0 10", "queue 10 15 by length", "prefill 15 48 by length", "decode 48 83 by length", "end of the answer 83 100"},
		},
		"a failed sync answer": {
			"sync",
			results.Record{Class: bench.Timeout, Trace: bench.Trace{Start: 100, End: 200}},
			[]string{"waiting for an answer 0 100"},
		},
		"stamps that cannot be": {
			"stream",
			results.Record{Trace: bench.Trace{Start: 100, Sent: 900, FirstByte: 50, End: 200, Marks: marks(20, 900, 30)}},
			[]string{"send 0 100"},
		},
	} {
		var got []string
		for _, p := range phases(&c.rec, c.mode == "stream") {
			text := fmt.Sprintf("%s %d %d", p.name, p.from-100, p.to-100)
			if p.length {
				text += " by length"
			}
			got = append(got, text)
		}
		equal(t, name, got, c.want)
	}
}

// fullRun is a run of every kind of thing.
func fullRun(t *testing.T) (dir string) {
	stream, sync := cellOf("vllm", "stream", 2, 4), cellOf("native", "sync", 1, 2)
	b, dir := newRun(t, stream, sync, cellOf("tgi", "sync", 1, 2))
	at := func(d int64) int64 { return begin + d }
	b.event(stream, 1, results.CellStarted, at(1*s))
	b.request(stream, -1, bench.Trace{Start: at(1100*ms + 1), Connect: 300 * us, Sent: at(1101 * ms), End: at(1200 * ms), Marks: marks(at(1150*ms), at(1199*ms)), PromptTokens: 10, OutputTokens: 2, Counted: bench.CountUsage},
		func(r *results.Record) { r.Warmup = true })
	b.request(stream, 0, bench.Trace{Start: at(2000*ms + 7), Sent: at(2001 * ms), End: at(2200*ms + 3), Marks: marks(at(2150*ms+1), at(2199*ms+2)), PromptTokens: 10, OutputTokens: 2, Counted: bench.CountUsage})
	b.request(stream, 1, bench.Trace{Start: at(2000 * ms), End: at(2300 * ms), Marks: marks(at(2100 * ms)), PromptTokens: 20, OutputTokens: 3, Counted: bench.CountUsage, Warnings: []bench.Warning{bench.WarnCount}},
		func(r *results.Record) { r.Worker = 1 })
	b.request(stream, 2, bench.Trace{Start: at(2200*ms + 3), End: at(2400 * ms)},
		func(r *results.Record) { r.Class, r.Error = bench.Timeout, "no first token within 200 ms" })
	b.request(stream, 3, bench.Trace{}, func(r *results.Record) { r.Class, r.Error = bench.Internal, "not prepared" })
	b.sample(stream, at(2000*ms), "gpu0", map[string]float64{"used_bytes": 3 << 20, "power_watts": 351.25, "energy_joules_total": 100, "sm_mhz": 1980, "busy_ratio": 0.5})
	b.sample(stream, at(2008*ms), "gpu0", map[string]float64{"used_bytes": 5 << 20})
	b.sample(stream, at(3000*ms), "gpu0", map[string]float64{"used_bytes": 5 << 20, "energy_joules_total": 400})
	b.sample(stream, at(2010*ms), "server", map[string]float64{"requests_running": 2, "requests_waiting": 1, "kv_cache_used_ratio": 0.25, "output_tokens_total": 7, "queue_seconds_sum": 3})
	b.sample(stream, at(2010*ms), "host", map[string]float64{"work_seconds": 10, "cpu_mhz": 3400, "new_thing_bytes": 12})
	b.event(stream, 1, results.CellDone, at(3100*ms), func(e *results.CellEvent) {
		e.WindowNS, e.Warnings = [2]int64{at(2000 * ms), at(2400 * ms)}, []string{"a busy machine"}
		e.Memory = []bench.MemoryPart{{Device: "CUDA0", Part: "kv", Bytes: 1 << 20}}
	})
	b.event(sync, 1, results.CellStarted, at(4*s))
	b.request(sync, 0, bench.Trace{Start: at(4100 * ms), End: at(4200 * ms), Marks: []bench.Mark{{T: at(4200 * ms), N: 8}}, PromptTokens: 5, OutputTokens: 8, Counted: bench.CountEngine})
	b.ok(b.w.Close())
	return dir
}

func TestTrace(t *testing.T) {
	dir := fullRun(t)
	file, sum := write(t, dir)
	if sum.Requests != 6 || sum.Failed != 2 || sum.Tokens != 13 || len(sum.Notes) > 0 {
		t.Errorf("%+v", sum)
	}
	all, counters, names := readBack(t, file)
	sound(t, all)
	equal(t, "requests", named(all, "request"), []string{
		"FAILED (internal) request 3 1000000000 1000000000",
		"request -1, warm-up 1100000001 1200000000",
		"WARNING (count_mismatch) request 1 2000000000 2300000000",
		"request 0 2000000007 2200000003",
		"FAILED (timeout) request 2 2200000003 2400000000",
		"request 0 4100000000 4200000000",
	})
	equal(t, "tokens", append(named(all, "token"), named(all, "event")...), []string{
		"token 1150000000 1150000000", "token 1199000000 1199000000", "token 2150000001 2150000001", "token 2199000002 2199000002", "8 tokens 4200000000 4200000000",
		"event 2100000000 2100000000",
	})
	equal(t, "cells", named(all, "cell"), []string{
		"WARNING gpt2/chat/stream/c2/vllm/r0 1000000000 3100000000", "WARNING 1000000000 3100000000", "measured window 2000000000 2400000000",
		"CUT OFF gpt2/chat/sync/c1/native/r0 4000000000 4200000000", "CUT OFF 4000000000 4200000000",
	})
	for _, sl := range all {
		if sl.name == "FAILED (timeout) request 2" && (sl.args["error"] != "no first token within 200 ms" || sl.args["class"] != "timeout" || sl.args["seed"] != "9223372036854775809") {
			t.Errorf("%v", sl.args)
		}
		if sl.name == "about this run" && (sl.args["begin"] != "2023-11-14T22:13:20Z" || sl.args["begin_ns"] != fmt.Sprint(int64(begin))) {
			t.Errorf("%v", sl.args)
		}
	}
	const vllm, native, gpu = "gpt2/chat/stream/c2/vllm/r0: ", "gpt2/chat/sync/c1/native/r0: ", "GPU 0: NVIDIA H100: "
	got := map[string]string{}
	for _, c := range counters {
		key := names[[2]int{c.pid, 0}] + ": " + c.name
		got[key] = strings.TrimSpace(fmt.Sprintf("%s %d=%g", got[key], c.t/ms, c.value))
	}
	want := map[string]string{
		vllm + "requests in flight (count)":               "1100=1 1200=0 2000=1 2000=2 2200=2 2300=1 2400=0",
		vllm + "context of requests in flight (tokens)":   "1100=10 1155=11 1200=0 2000=20 2000=30 2105=33 2155=34 2200=35 2200=23 2300=0 2400=0",
		vllm + "server: requests running (count)":         "2010=2 3100=NaN",
		vllm + "server: requests waiting (count)":         "2010=1 3100=NaN",
		vllm + "server: KV cache used (%)":                "2010=25 3100=NaN",
		native + "requests in flight (count)":             "4100=1 4200=0",
		native + "context of requests in flight (tokens)": "4100=5 4200=0",
		gpu + "memory used (MiB)":                         "2000=3 2008=5 3100=NaN",
		gpu + "power (W)":                                 "2000=351.25 3100=NaN",
		gpu + "power by the energy counter (W)":           "2000=300 3100=NaN",
		gpu + "SM clock (MHz)":                            "2000=1980 3100=NaN",
		gpu + "busy (%)":                                  "2000=50 3100=NaN",
		"host: CPU clock (MHz)":                           "2010=3400 3100=NaN",
		"host: new_thing_bytes (value)":                   "2010=12 3100=NaN",
	}
	if !maps.Equal(got, want) {
		t.Errorf("counters:\n got %q\nwant %q", got, want)
	}

	answers := timelinetest.Sound(t, file,
		"select count(*), sum(extract_arg(arg_set_id, 'args.n')) from slice where category in ('token', 'event')",
		"select count(*) from slice",
		"select p.name, t.name, c.ts, c.value from counter c join process_counter_track t on c.track_id = t.id join process p using (upid) where c.value is not null and (t.name like 'power%' or t.name like '%KV%') order by c.ts desc, t.name",
		"select count(*), count(value), count(distinct track_id) from counter where ts = 3100000000",
		"select ts, dur, extract_arg(arg_set_id, 'args.prompt_tokens'), extract_arg(arg_set_id, 'args.error') from slice where name like 'FAILED (timeout)%' order by ts",
		"select s.ts from slice s where s.category = 'token' and s.ts % 1000000 != 0 order by s.ts",
		"select t.name, count(*) from slice s join thread_track tt on s.track_id = tt.id join thread t using (utid) where s.category = 'request' and s.dur > 0 group by t.utid order by t.name, 2",
	)
	for i, want := range []string{
		"[[6 13]]",
		fmt.Sprintf("[[%d]]", len(all)),
		"[[gpt2/chat/stream/c2/vllm/r0 server: KV cache used (%) 2010000000 25] [GPU 0: NVIDIA H100 power (W) 2000000000 351.25] [GPU 0: NVIDIA H100 power by the energy counter (W) 2000000000 300]]",
		"[[10 0 10]]",
		"[[2200000003 199999997 0 no first token within 200 ms]]",
		"[[2150000001] [2199000002]]",
		"[[client 0 1] [client 0 3] [client 1 1]]",
	} {
		if got := fmt.Sprint(answers[i]); got != want {
			t.Errorf("query %d: got %s, want %s", i, got, want)
		}
	}
}

// TestLanes: requests of one client that overlap, which cannot be unless
// something is wrong, do not cover each other.
func TestLanes(t *testing.T) {
	c := cellOf("native", "stream", 1, 3)
	b, dir := newRun(t, c)
	b.event(c, 1, results.CellStarted, begin)
	for i, span := range [][2]int64{{10, 30}, {20, 40}, {30, 50}, {40, 60}} {
		b.request(c, i, bench.Trace{Start: begin + span[0], End: begin + span[1]})
	}
	b.ok(b.w.Close())
	file, _ := write(t, dir)
	all, _, names := readBack(t, file)
	sound(t, all)
	var got []string
	for _, sl := range all {
		if sl.kind == "request" {
			got = append(got, names[[2]int{sl.pid, sl.tid}])
		}
	}
	equal(t, "lanes", got, []string{"client 0", "client 0 (2)", "client 0", "client 0 (2)"})
}

// TestSittings: a run that was resumed has one time, also where the machine was
// started anew in between.
func TestSittings(t *testing.T) {
	for boot, want := range map[string][]string{
		"first":  {"request 0 1000000000 1100000000", "request 0 5000000000 5100000000"},
		"second": {"request 0 1000000000 1100000000", "request 0 3605000000000 3605100000000"},
	} {
		c := cellOf("native", "stream", 1, 1)
		b, dir := newRun(t, c)
		b.event(c, 1, results.CellStarted, begin+1*s)
		b.request(c, 0, bench.Trace{Start: begin + 1*s, End: begin + 1100*ms})
		b.sample(c, begin+1*s, "gpu0", map[string]float64{"used_bytes": 1 << 20})
		mono := int64(begin + 4*s)
		if boot == "second" {
			mono = 4 * s // of a machine that was up for 4 s
		}
		b.m.Clocks = []results.Clock{{Source: "CLOCK_MONOTONIC", WallNS: 1_700_000_000*s + 3604*s, MonotonicNS: mono, BootID: boot, EventsBefore: 1}}
		b.ok(b.w.SetManifest(b.m))
		b.event(c, 2, results.CellStarted, mono+500*ms)
		b.request(c, 0, bench.Trace{Start: mono + 1*s, End: mono + 1100*ms}, func(r *results.Record) { r.Attempt = 2 })
		b.sample(c, mono+1*s, "gpu0", map[string]float64{"used_bytes": 2 << 20})
		b.event(c, 2, results.CellDone, mono+2*s)
		b.ok(b.w.Close())
		file, _ := write(t, dir)
		all, counters, names := readBack(t, file)
		sound(t, all)
		equal(t, boot+": requests", named(all, "request"), want)
		counters = slices.DeleteFunc(counters, func(c counter) bool { return c.name != "memory used (MiB)" || math.IsNaN(c.value) })
		if len(counters) != 2 || !strings.Contains(want[1], fmt.Sprintf(" %d ", counters[1].t)) {
			t.Errorf("%s: samples: %+v", boot, counters)
		}
		if names[[2]int{cellPid, 0}] != c.ID+" (attempt 1, not used)" || names[[2]int{cellPid + 1, 0}] != c.ID+" (attempt 2)" {
			t.Errorf("%v", names)
		}
	}
}

// TestDamage: a directory that lost lines gives a trace of the rest, and says
// what is missing.
func TestDamage(t *testing.T) {
	dir := fullRun(t)
	for _, name := range []string{"requests.jsonl", "telemetry.jsonl"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(string(b), "\n")
		lines[1] = "{]\n"
		text := strings.Join(lines, "") + `{"cell":"no such cell","attempt":1,"subject":"gpu0","t_ns":5,"v":{"used_bytes":1}}` + "\n" + `{"ce`
		if name == "requests.jsonl" {
			text = lines[2] + text // the third one is there twice
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, sum := write(t, dir)
	all, _, _ := readBack(t, file)
	sound(t, all)
	if notes := strings.Join(sum.Notes, "\n"); sum.Requests != 5 || len(sum.Notes) != 6 ||
		!strings.Contains(notes, "requests.jsonl:3: not a request") || !strings.Contains(notes, "is cut off") ||
		!strings.Contains(notes, "1 requests are there twice") || !strings.Contains(notes, "2 lines of attempts") {
		t.Errorf("%d requests, %q", sum.Requests, sum.Notes)
	}
	timelinetest.Sound(t, file)
}

// TestNothingThere: a run of which no request was made, and no telemetry kept.
func TestNothingThere(t *testing.T) {
	c := cellOf("native", "stream", 1, 1)
	b, dir := newRun(t, c)
	b.ok(b.w.Close())
	for _, name := range []string{"requests.jsonl", "telemetry.jsonl"} {
		b.ok(os.Remove(filepath.Join(dir, name)))
	}
	file, sum := write(t, dir)
	all, counters, _ := readBack(t, file)
	if len(all) != 1 || len(counters) != 0 || sum.Requests != 0 {
		t.Errorf("%d slices, %d counters, %+v", len(all), len(counters), sum)
	}
	equal(t, "notes", sum.Notes, []string{"requests.jsonl is missing", "telemetry.jsonl is missing"})
}

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("the disk is full")
	}
	return len(p), nil
}

// TestFullDisk: wherever it is cut off, a trace is an error and no whole file.
func TestFullDisk(t *testing.T) {
	run, err := results.ReadEvents(fullRun(t))
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if _, err := Write(&whole, run); err != nil {
		t.Fatal(err)
	}
	for room := 0; room < whole.Len(); room += 977 {
		if _, err := Write(&full{room}, run); err == nil || err.Error() != "the disk is full" {
			t.Fatalf("with room for %d of %d bytes: %v", room, whole.Len(), err)
		}
	}
}

// TestAnyRun: whatever the stamps of a run are, its trace is sound, has every
// request, and all that the marks brought.
func TestAnyRun(t *testing.T) {
	const cells, requests = 20, 40
	var list []results.Cell
	for i := range cells {
		list = append(list, cellOf(fmt.Sprintf("b%d", i), []string{"stream", "sync"}[i%2], 3, requests))
	}
	b, dir := newRun(t, list...)
	tokens := 0
	for i, c := range list {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		b.event(c, 1, results.CellStarted, begin+int64(r.IntN(1000)))
		// Few distinct times, so that many ends and begins fall together.
		when := func() int64 { return begin + int64(r.IntN(40)) }
		for i := range requests {
			tr := bench.Trace{Start: when(), PromptTokens: r.IntN(9) - 1, OutputTokens: r.IntN(9)}
			tr.End = tr.Start + int64(r.IntN(10))
			tr.Connect = int64(r.IntN(2) * r.IntN(5))
			tr.Sent, tr.FirstByte = when()*int64(r.IntN(2)), when()*int64(r.IntN(2))
			tr.Phases = bench.Phases{Tokenize: int64(r.IntN(3)), Queue: int64(r.IntN(9)), Prefill: int64(r.IntN(9)), Decode: int64(r.IntN(9))}
			if r.IntN(2) == 0 {
				tr.Phases, tr.Server = bench.Phases{}, bench.Server{Queue: int64(r.IntN(9)), Prefill: int64(r.IntN(9)), Decode: int64(r.IntN(9))}
			}
			n := 0
			for len(tr.Marks) < r.IntN(8) {
				n += r.IntN(3)
				tr.Marks = append(tr.Marks, bench.Mark{T: when(), N: int32(n)})
			}
			tokens += n
			b.request(c, i, tr, func(rec *results.Record) { rec.Worker = r.IntN(3) })
		}
	}
	b.ok(b.w.Close())
	file, sum := write(t, dir)
	all, _, _ := readBack(t, file)
	sound(t, all)
	if n := len(named(all, "request")); n != cells*requests || sum.Requests != n {
		t.Errorf("%d requests, %+v", n, sum)
	}
	got := 0
	for _, sl := range all {
		if sl.kind == "token" || sl.kind == "event" {
			got += int(sl.args["n"].(float64))
		}
	}
	if got != tokens || sum.Tokens != tokens || tokens == 0 {
		t.Errorf("%d tokens, made %d, %+v", got, tokens, sum)
	}
	answers := timelinetest.Sound(t, file,
		"select sum(extract_arg(arg_set_id, 'args.n')) from slice where category in ('token', 'event')",
		"select count(*) from slice where category = 'request'")
	if got, want := fmt.Sprint(answers), fmt.Sprintf("[[[%d]] [[%d]]]", tokens, cells*requests); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestDocumentedSeries: every value that the run directory's page names is
// shown with a unit, or is known to be left out.
func TestDocumentedSeries(t *testing.T) {
	page, err := os.ReadFile("../../docs/run-directory.md")
	if err != nil {
		t.Fatal(err)
	}
	_, row, _ := strings.Cut(string(page), "| `v` | values by name.")
	row, _, _ = strings.Cut(row, "|\n")
	known := map[string]bool{ // means of which the trace shows nothing, and words of the row that are no values
		"queue_seconds": true, "prefill_seconds": true, "decode_seconds": true,
		"backend": true, "host": true, "sampler": true, "server": true, "gpu0": true, "_sum": true, "_count": true, "_per_second": true,
	}
	for _, of := range shown() {
		for key := range of {
			known[key] = true
		}
	}
	found := 0
	for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(row, -1) {
		if found++; !known[m[1]] {
			t.Errorf("%s is not in the table of shown values", m[1])
		}
	}
	if found < 40 {
		t.Fatalf("only %d names were found in the page", found)
	}
}
