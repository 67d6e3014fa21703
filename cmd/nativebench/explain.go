package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/report"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "say what a metric means: definition, clock, token count, window, and how other tools define it",
		ArgsUsage: "[METRIC…]",
		Description: "Examples:\n" +
			"   nativebench explain                 all metrics, a line each\n" +
			"   nativebench explain ttft            one of them; p2ft is the same\n" +
			"   nativebench explain tpot itl\n" +
			"   nativebench explain --format md     the whole reference, as in docs/metrics.md",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "terminal", Usage: "`FORMAT`: terminal, md"},
		},
		Action: func(c *cli.Context) error {
			out := c.App.Writer
			switch format := c.String("format"); format {
			case "terminal":
			case "md", "markdown":
				if c.Args().Present() {
					return refuse("explain: --format md prints all metrics; leave out %q", c.Args().First())
				}
				return report.MetricsDoc(out)
			default:
				return refuse("explain: unknown format %q: choose from terminal, md", format)
			}
			if !c.Args().Present() {
				return report.ExplainAll(out, report.Options{})
			}
			if err := report.Explain(out, c.Args().Slice(), report.Options{}); err != nil {
				return usageError{fmt.Errorf("explain: %w", err)}
			}
			return nil
		},
	}
}
