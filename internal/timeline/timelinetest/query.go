// Package timelinetest opens traces in Perfetto's own trace processor.
package timelinetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Query asks the trace processor about the trace in a file and returns the rows
// of each answer, as text ("" for NULL). Queries are one line each. The test is
// skipped where NATIVEBENCH_TRACE_PROCESSOR does not say that it was fetched.
func Query(t testing.TB, file string, queries ...string) [][][]string {
	t.Helper()
	if os.Getenv("NATIVEBENCH_TRACE_PROCESSOR") == "" {
		t.Skip("NATIVEBENCH_TRACE_PROCESSOR is not set (scripts/trace-processor.sh --fetch prints its value): no trace processor to open the trace with")
	}
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../../scripts/trace-processor.sh"), file)
	cmd.Stdin = strings.NewReader(strings.Join(queries, "\n"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("the trace processor did not take %s: %v\n%s", file, err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	if len(lines) != len(queries) {
		t.Fatalf("%d answers to %d queries:\n%s", len(lines), len(queries), stdout.String())
	}
	tables := make([][][]string, len(lines))
	for i, line := range lines {
		var answer struct {
			Rows  [][]any
			Error string
		}
		if err := json.Unmarshal([]byte(line), &answer); err != nil || answer.Error != "" {
			t.Fatalf("%s: %v %s", queries[i], err, answer.Error)
		}
		for _, row := range answer.Rows {
			cells := make([]string, len(row))
			for k, v := range row {
				if v != nil {
					cells[k] = fmt.Sprint(v)
				}
			}
			tables[i] = append(tables[i], cells)
		}
	}
	return tables
}

// Checks are queries whose answers must be empty for any trace of a run: what
// the trace processor could not import, slices that overlap on one track, and
// tokens outside of a request.
func Checks() []string {
	return []string{
		"select name, severity, value from stats where severity in ('error', 'data_loss') and value > 0",
		"select a.id, a.name, b.name from slice a join slice b on a.track_id = b.track_id and a.depth = b.depth and a.id != b.id and a.ts <= b.ts and a.ts + a.dur > b.ts and b.dur > 0",
		"select id, name from slice where dur < 0",
		"select t.id, t.ts, p.name from slice t left join slice p on t.parent_id = p.id where t.category in ('token', 'event') and (p.id is null or p.category not in ('request', 'phase') or t.ts < p.ts or t.ts > p.ts + p.dur)",
		"select p.id, p.name from slice p left join slice r on p.parent_id = r.id where p.category = 'phase' and p.name != 'connect' and (r.category is null or r.category != 'request' or p.ts < r.ts or p.ts + p.dur > r.ts + r.dur)",
	}
}

// Sound applies Checks and gives the answers to further queries.
func Sound(t testing.TB, file string, queries ...string) [][][]string {
	t.Helper()
	checks := Checks()
	answers := Query(t, file, append(checks, queries...)...)
	for i, check := range checks {
		if n := len(answers[i]); n > 0 {
			t.Errorf("%d rows where there must be none, the first of them %q:\n%s", n, answers[i][0], check)
		}
	}
	return answers[len(checks):]
}
