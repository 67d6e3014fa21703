package main

import (
	"io"

	"github.com/nativebench/nativebench/internal/report"
	"github.com/nativebench/nativebench/internal/results"
)

// noReport is the format of a run that is reported later.
const noReport = "none"

// checkFormat refuses a report format that there is none of.
func checkFormat(name string) error {
	if name == noReport {
		return nil
	}
	if _, err := report.ByName(name); err != nil {
		return refuse("%w, or %s", err, noReport)
	}
	return nil
}

// showRun reports a run directory, from the directory alone.
func showRun(w io.Writer, dir, format string) error {
	if format == noReport {
		return nil
	}
	f, err := report.ByName(format)
	if err != nil {
		return err
	}
	run, err := results.Read(dir)
	if err != nil {
		return err
	}
	return f.Write(w, []*results.Run{run}, report.Options{})
}
