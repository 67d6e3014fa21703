package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	httppprof "net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// isAddress tells whether --pprof names an address, not a directory.
func isAddress(where string) bool {
	_, port, err := net.SplitHostPort(where)
	return err == nil && port != "" && filepath.Base(where) == where
}

// checkPprof refuses what profiles of our own processes cannot be had at.
func checkPprof(where string) error {
	switch {
	case where == "":
		return nil
	case isAddress(where):
		l, err := net.Listen("tcp", where)
		if err != nil {
			return refuse("--pprof %s: nothing can listen there: %w; choose another address", where, err)
		}
		return l.Close() // each cell's process opens it again
	}
	if err := os.MkdirAll(where, 0o755); err != nil {
		return refuse("--pprof %s: %w; give a directory that can be written, or an address such as 127.0.0.1:6060", where, err)
	}
	probe, err := os.CreateTemp(where, ".probe-*")
	if err != nil {
		return refuse("--pprof %s: %w; give a directory that can be written, or an address such as 127.0.0.1:6060", where, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// pprofNote is the note of a run whose own processes were profiled; "" if they
// were not.
func pprofNote(where string) string {
	switch {
	case where == "":
		return ""
	case isAddress(where):
		return fmt.Sprintf("the process of each cell answered at %s for profiles of itself (--pprof): one that was taken slowed it down", where)
	}
	return "the processes of nativebench itself were profiled (--pprof), 100 stacks a second of each core: what they do cost a little more"
}

// startPprof begins to profile this process: CPU time until stop, then what is
// live on the heap, into name.cpu.pprof and name.heap.pprof of a directory; or
// a server of net/http/pprof at an address. "" is nothing.
func startPprof(where, name string) (stop func() error, err error) {
	if where == "" {
		return func() error { return nil }, nil
	}
	if isAddress(where) {
		return servePprof(where)
	}
	cpu, err := os.Create(filepath.Join(where, name+".cpu.pprof"))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, errors.Join(err, cpu.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		err := cpu.Close()
		heap, createErr := os.Create(filepath.Join(where, name+".heap.pprof"))
		if createErr != nil {
			return errors.Join(err, createErr)
		}
		runtime.GC() // what is live, not what was
		return errors.Join(err, pprof.WriteHeapProfile(heap), heap.Close())
	}, nil
}

func servePprof(address string) (stop func() error, err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", httppprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", httppprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", httppprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", httppprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", httppprof.Trace)
	srv := &http.Server{Handler: mux}
	go srv.Serve(l) // its error is that of Close
	return srv.Close, nil
}
