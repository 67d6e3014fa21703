package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/plan"
)

// A server that cannot be stopped is not forgotten, and nothing is started
// beside it.
func TestServerThatCannotBeStopped(t *testing.T) {
	var stuck error = errors.New("process 7 is still there")
	var started, stopped []string
	row := func(name string) backend {
		return backend{name: name, ready: func(_ context.Context, p place) (*seat, error) {
			started = append(started, name+" "+p.model.Key)
			return &seat{stop: func(context.Context) error {
				stopped = append(stopped, name)
				return stuck
			}}, nil
		}}
	}
	s := newSeats(func(_, model string) place { return place{model: plan.Model{Key: model}} })
	s.alone = true
	get := func(name, model string) error {
		_, _, _, err := s.get(t.Context(), row(name), model)
		return err
	}
	if err := get("a", "m"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"another server": get("b", "m"), "another model": get("a", "n")} {
		if err == nil || !strings.Contains(err.Error(), "process 7 is still there") {
			t.Errorf("%s beside it: %v", what, err)
		}
	}
	if err := s.close(); err == nil || !strings.Contains(err.Error(), "stopping a: process 7") {
		t.Errorf("close: %v", err)
	}
	if len(stopped) != 3 || !slices.Equal(started, []string{"a m"}) {
		t.Errorf("started %q, asked to stop %q", started, stopped)
	}
	stuck = nil
	if err := get("b", "m"); err != nil {
		t.Error(err)
	}
	// One that was not started here is left where it is.
	s.taken["c"] = &keptSeat{seat: &seat{}, model: "m"}
	if err := get("a", "m"); err != nil || s.taken["c"] == nil || s.taken["b"] != nil {
		t.Errorf("%v; taken %v", err, s.taken)
	}
}
