package main

import (
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
)

func TestEstimateLearnsFromFinishedCells(t *testing.T) {
	cell := func(backend string, requests int) plan.Cell {
		return plan.Cell{Backend: backend, Requests: requests, Concurrency: 1, Sampling: bench.Sampling{MaxTokens: 92}}
	}
	e := estimate{cost: map[string]time.Duration{}, work: map[string]float64{}}
	cells := []plan.Cell{cell("a", 10), cell("b", 20)}
	if _, ok := e.of(cells); ok {
		t.Fatal("an estimate from nothing")
	}
	e.add(cell("a", 10), 10*time.Second) // 1 s a request
	if got, ok := e.of(cells); !ok || got != 30*time.Second {
		t.Fatalf("got %v, want b as fast as a: 30 s", got)
	}
	e.add(cell("b", 10), 20*time.Second)
	if got, _ := e.of(cells); got != 50*time.Second {
		t.Fatalf("got %v, want 10 s and 40 s", got)
	}
	cells[0].Cooldown = 5 * time.Second
	if got, _ := e.of(cells); got != 55*time.Second {
		t.Fatalf("got %v, want the pause counted", got)
	}
}

func TestShortTimes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 420 * time.Millisecond: "0.4s", 12 * time.Second: "12s", 59*time.Second + 700*time.Millisecond: "1m00s",
		185 * time.Second: "3m05s", 2*time.Hour + 10*time.Minute: "2h10m",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
