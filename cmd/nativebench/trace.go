package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/timeline"
)

func traceCommand() *cli.Command {
	return &cli.Command{
		Name:      "trace",
		Usage:     "write a run as one trace for Perfetto: requests, phases, tokens, telemetry",
		ArgsUsage: "DIR",
		Description: "Examples:\n" +
			"   nativebench trace runs/20260102-030405-gpt2 -o out.json\n" +
			"   nativebench trace runs/20260102-030405-gpt2 -o out.json.gz     compressed\n" +
			"   nativebench compare --trace out.json                           a run and its trace\n\n" +
			"Open the file at ui.perfetto.dev (it stays on your machine) or in chrome://tracing.\n" +
			"A directory whose run is under way, was stopped or was killed is shown as far as it\n" +
			"goes. docs/trace.md says what each track and counter is.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`; compressed if its name ends in .gz"},
		},
		Action: func(c *cli.Context) error {
			switch {
			case c.NArg() == 0:
				return refuse("trace: no run directory was given; try: nativebench trace runs/<run> -o out.json")
			case c.NArg() > 1:
				return refuse("trace: %d run directories were given; a trace is of one", c.NArg())
			case c.String("output") == "":
				return refuse("trace %s: no file was given; add -o out.json", c.Args().First())
			}
			if err := checkTraceFile(c.String("output")); err != nil {
				return refuse("trace: -o %w", err)
			}
			return writeTrace(c.App.ErrWriter, c.Args().First(), c.String("output"))
		},
	}
}

// checkTraceFlag refuses a --trace that could not be written after the run.
func checkTraceFlag(c *cli.Context) error {
	if !c.IsSet("trace") {
		return nil
	}
	if err := checkTraceFile(c.String("trace")); err != nil {
		return refuse("--trace %w", err)
	}
	return nil
}

func checkTraceFile(path string) error {
	if path == "" {
		return errors.New("needs the name of a file, as out.json")
	}
	switch info, err := os.Lstat(path); {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s: it is a directory; name a file", path)
	case err == nil && !info.Mode().IsRegular(): // it would be replaced, /dev/stdout for one
		return fmt.Errorf("%s: there is something of that name that is no plain file; name another file", path)
	case results.IsPart(path):
		return fmt.Errorf("%s: it is a part of a run and would be lost; name another file", path)
	}
	parent := filepath.Dir(path)
	if info, err := os.Stat(parent); err != nil {
		return fmt.Errorf("%s: there is no directory %s; make it or name another file", path, parent)
	} else if !info.IsDir() {
		return fmt.Errorf("%s: %s is a file, not a directory", path, parent)
	}
	probe, err := os.CreateTemp(parent, ".trace-*")
	if err != nil {
		return fmt.Errorf("%s: cannot write into %s: %w; name another file", path, parent, errors.Unwrap(err))
	}
	probe.Close()
	os.Remove(probe.Name())
	return nil
}

// writeTrace writes the whole trace of a run directory, or leaves the file as
// it was, and says what is in it.
func writeTrace(out io.Writer, dir, path string) (err error) {
	run, err := results.ReadEvents(dir)
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".trace-*")
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("trace: writing %s: %w", path, err)
		}
	}()
	var to io.Writer = f
	pack := func() error { return nil }
	if strings.HasSuffix(path, ".gz") {
		z := gzip.NewWriter(f)
		to, pack = z, z.Close
	}
	sum, err := timeline.Write(to, run)
	if err != nil {
		return err
	}
	if err := errors.Join(pack(), f.Chmod(0o644), f.Close(), os.Rename(f.Name(), path)); err != nil {
		return err
	}
	for _, n := range sum.Notes {
		fmt.Fprintln(out, "note: "+n)
	}
	fmt.Fprintf(out, "trace: %s (%d requests, %d of them failed; %d tokens; %d samples): open it at ui.perfetto.dev\n", path, sum.Requests, sum.Failed, sum.Tokens, sum.Samples)
	return nil
}
