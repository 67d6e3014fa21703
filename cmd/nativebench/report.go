package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/report"
	"github.com/nativebench/nativebench/internal/results"
)

func reportCommand() *cli.Command {
	var names []string
	for _, f := range report.Formats() {
		names = append(names, f.Name)
	}
	return &cli.Command{
		Name:      "report",
		Usage:     "print runs again, or compare them, from their directories alone",
		ArgsUsage: "DIR…",
		Description: "Examples:\n" +
			"   nativebench report runs/20260102-030405-gpt2\n" +
			"   nativebench report runs/before runs/after              the runs side by side, too\n" +
			"   nativebench report runs/x --format markdown -o report.md\n" +
			"   nativebench report runs/x --format csv | column -s, -t | less -S\n" +
			"   nativebench report runs/x --format json | jq '.runs[0].loads[0]'\n\n" +
			"A directory whose run is under way, was stopped or was killed is reported as far as\n" +
			"it goes. CSV and JSON hold every metric in base units; nativebench explain defines them.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: names[0], Usage: "`FORMAT`: " + strings.Join(names, ", ")},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of the terminal"},
		},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return refuse("report: no run directory was given; try: nativebench report runs/*")
			}
			format, err := report.ByName(c.String("format"))
			if err != nil {
				return usageError{fmt.Errorf("report: %w", err)}
			}
			runs := make([]*results.Run, c.NArg())
			for i, dir := range c.Args().Slice() {
				if runs[i], err = results.Read(dir); err != nil {
					return fmt.Errorf("report: %w", err)
				}
			}
			if path := c.String("output"); path != "" {
				return writeReportFile(path, format, runs)
			}
			return format.Write(c.App.Writer, runs, report.Options{})
		},
	}
}

// writeReportFile writes a whole report or leaves the file as it was.
func writeReportFile(path string, format report.Format, runs []*results.Run) error {
	var b bytes.Buffer
	if err := format.Write(&b, runs, report.Options{}); err != nil {
		return err
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
