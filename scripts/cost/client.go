//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/bench"
)

// reported is what a client says of one request.
type reported struct {
	ID    int
	Start int64
	Marks []int64 // when each token came; ns, clock of bench.Now
}

// account is what a client process did.
type account struct {
	Requests             []reported
	CPU                  int64 // ns, user and system, from the first request on
	Wall                 int64 // ns, first request to last answer
	Allocs               uint64
	Peak                 int64 // bytes
	Coalesced, Unstamped int
	ClockUncertainty     int64
}

// stream is one seat of a client; ask sends a request and fills in r.
type stream interface {
	ask(r *reported) error
	counts() (coalesced, unstamped int)
}

// client runs the load in a closed loop, one goroutine per stream, and writes
// its account to standard output.
func client(l load, kind, endpoint, profile string) error {
	open := openOurs
	if kind == "floor" {
		open = openFloor
	}
	streams, err := open(l, endpoint)
	if err != nil {
		return err
	}
	requests := make([]reported, l.Streams*l.Rounds)
	for i := range requests {
		requests[i] = reported{ID: i, Marks: make([]int64, 0, l.Tokens)}
	}
	errs := make([]error, l.Streams)
	gate := make(chan struct{})
	var start time.Time
	var wg sync.WaitGroup
	for i, s := range streams {
		wg.Go(func() {
			<-gate
			if !l.Together { // one token's time is shared out among the streams
				time.Sleep(time.Until(start.Add(time.Duration(l.interval() * int64(i) / int64(l.Streams)))))
			}
			for r := range l.Rounds {
				if errs[i] = s.ask(&requests[r*l.Streams+i]); errs[i] != nil {
					return
				}
			}
		})
	}
	runtime.GC() // of what start-up left
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := cpuTime()
	start = time.Now()
	close(gate)
	wg.Wait()
	a := account{Requests: requests, CPU: cpuTime() - cpu, Wall: int64(time.Since(start)), ClockUncertainty: bench.ClockUncertainty()}
	runtime.ReadMemStats(&after)
	a.Allocs = after.Mallocs - before.Mallocs
	a.Peak = peak()
	pprof.StopCPUProfile()
	for i, s := range streams {
		if errs[i] != nil {
			return fmt.Errorf("stream %d: %w", i, errs[i])
		}
		coalesced, unstamped := s.counts()
		a.Coalesced += coalesced
		a.Unstamped += unstamped
	}
	return gob.NewEncoder(os.Stdout).Encode(a)
}

// cpuTime is what this process has used, in ns.
func cpuTime() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // only a wrong argument fails
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// peak is the largest resident memory of this process so far, in bytes.
func peak() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Maxrss << 10
}

// prompt carries the request's number to the server.
func prompt(id int) string { return fmt.Sprintf("%s%d %s", prefix, id, strings.Repeat("word ", 100)) }

// ours is the client under test, used as the runner uses it.
type ours struct {
	session              bench.Session
	trace                *bench.Trace
	tokens               int
	coalesced, unstamped int
}

func openOurs(l load, endpoint string) ([]stream, error) {
	row, err := httpbackends.ServerByName("llama-server")
	if err != nil {
		return nil, err
	}
	row.ClosesAfterStream = false // this server keeps its connections
	b, err := httpbackends.Open(context.Background(), httpbackends.Config{Server: row, Endpoint: endpoint})
	if err != nil {
		return nil, err
	}
	streams := make([]stream, l.Streams)
	for i := range streams {
		s, err := b.NewSession(bench.Limits{PromptBytes: len(prompt(1 << 30)), PromptTokens: 128, OutputTokens: l.Tokens})
		if err != nil {
			return nil, err
		}
		streams[i] = &ours{session: s, trace: bench.NewTrace(l.Tokens), tokens: l.Tokens}
	}
	return streams, nil
}

func (o *ours) counts() (coalesced, unstamped int) { return o.coalesced, o.unstamped }

func (o *ours) ask(r *reported) error {
	o.trace.Reset()
	err := o.session.Prepare(&bench.Request{Prompt: prompt(r.ID), Stream: true, Sampling: bench.Sampling{TopP: 1, MaxTokens: o.tokens, IgnoreEOS: true}})
	if err != nil {
		return err
	}
	if err := o.session.Generate(context.Background(), o.trace); err != nil {
		return err
	}
	if len(o.trace.Warnings) > 0 {
		return fmt.Errorf("request %d was answered with warnings: %v", r.ID, o.trace.Warnings)
	}
	o.coalesced += o.trace.Coalesced
	o.unstamped += o.trace.Unstamped
	r.Start = o.trace.Start
	for _, m := range o.trace.Marks {
		r.Marks = append(r.Marks, m.T)
	}
	return nil
}

// floor is the least that net/http costs: it counts events and stamps them,
// and looks into none.
type floor struct {
	http     *http.Client
	endpoint string
	tokens   int
}

func openFloor(l load, endpoint string) ([]stream, error) {
	streams := make([]stream, l.Streams)
	for i := range streams {
		f := &floor{http: &http.Client{Transport: &http.Transport{DisableCompression: true}}, endpoint: endpoint, tokens: l.Tokens}
		// Its one connection is open before the load, as ours are.
		resp, err := f.http.Get(endpoint + "/health")
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		streams[i] = f
	}
	return streams, nil
}

func (f *floor) counts() (coalesced, unstamped int) { return 0, 0 }

func (f *floor) ask(r *reported) error {
	body := fmt.Sprintf(`{"max_tokens":%d,"prompt":"%s","stream":true}`, f.tokens, prompt(r.ID))
	req, err := http.NewRequest(http.MethodPost, f.endpoint+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	r.Start = bench.Now()
	resp, err := f.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), []byte("data: ")) && len(r.Marks) < f.tokens {
			r.Marks = append(r.Marks, bench.Now())
		}
	}
	return lines.Err()
}
