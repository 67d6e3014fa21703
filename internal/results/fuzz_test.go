package results

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func line(f *testing.F, v any) []byte {
	f.Helper()
	b, err := encodeLine(v)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// whatIsReadCanBeWritten checks that a decoder never panics and that what it
// takes means the same after it was written again.
func whatIsReadCanBeWritten[T any](t *testing.T, b []byte, decode func([]byte) (T, error)) {
	t.Helper()
	v, err := decode(b)
	if err != nil {
		return
	}
	again, err := encodeLine(&v)
	if err != nil {
		t.Fatalf("read, but cannot be written: %v", err)
	}
	w, err := decode(again)
	if err != nil {
		t.Fatalf("written, but cannot be read: %v\n%s", err, again)
	}
	if d := cmp.Diff(v, w, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("changed by writing:\n%s", d)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(line(f, sampleRecord("a", 1, 0)))
	f.Add(line(f, failedRecord("a", 1, 0)))
	binary := sampleRecord("a", 1, -3)
	binary.Text = "\xed\x95"
	f.Add(line(f, binary))
	f.Add([]byte(`{"cell":"a","attempt":1,"start_ns":9223372036854775807,"marks":[[1,1],[-9223372036854775808,2]]}`))
	f.Add([]byte(`{"cell":"a","attempt":1,"text":"x","text_b64":"////"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) { whatIsReadCanBeWritten(t, b, decodeRecord) })
}

func FuzzCellEvent(f *testing.F) {
	f.Add(line(f, CellEvent{Cell: "a", Attempt: 1, State: CellStarted, T: 1}))
	f.Add(line(f, CellEvent{Cell: "a", Attempt: 2, State: CellFailed, Reason: "why", Stderr: []string{"x"}, Host: &HostUse{PeakRSS: -1}}))
	f.Add([]byte(`{"cell":"a","attempt":1,"state":"done","window_ns":[1,2,3]}`))
	f.Fuzz(func(t *testing.T, b []byte) { whatIsReadCanBeWritten(t, b, decodeEvent) })
}

func FuzzSample(f *testing.F) {
	f.Add(line(f, Sample{T: 1, Subject: "host", Values: map[string]float64{"rss_bytes": 1e9}}))
	f.Add([]byte(`{"subject":"host","v":{"x":1e400}}`))
	f.Add([]byte(`{"subject":"host","v":null}`))
	f.Fuzz(func(t *testing.T, b []byte) { whatIsReadCanBeWritten(t, b, decodeSample) })
}

func FuzzManifest(f *testing.F) {
	b, err := encodeManifest(sampleManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"schema":1}`))
	f.Add([]byte(`{"schema":2,"cells":3}`))
	f.Add([]byte(`{"schema":1,"cells":[{"id":"a"},{"id":"a"}]}`))
	f.Add([]byte(`{"schema":1,"plan":1e999}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeManifest(b)
		if err != nil {
			return
		}
		again, err := encodeManifest(m)
		if err != nil {
			t.Fatalf("read, but cannot be written: %v", err)
		}
		n, err := decodeManifest(again)
		if err != nil {
			t.Fatalf("written, but cannot be read: %v\n%s", err, again)
		}
		// Secrets go and the plan is laid out anew; all else stays.
		ignore := cmp.Options{cmpopts.EquateEmpty(), cmpopts.IgnoreFields(Manifest{}, "Plan", "Command"), cmpopts.IgnoreFields(Backend{}, "Command", "Endpoint")}
		if d := cmp.Diff(m, n, ignore...); d != "" {
			t.Fatalf("changed by writing:\n%s", d)
		}
	})
}

// FuzzRun reads and resumes a directory of any content: no panic, no error that
// is not about the manifest, and whole after the repair.
func FuzzRun(f *testing.F) {
	manifest, err := encodeManifest(sampleManifest())
	if err != nil {
		f.Fatal(err)
	}
	id := sampleManifest().Cells[0].ID
	event := line(f, CellEvent{Cell: id, Attempt: 1, State: CellStarted})
	record := line(f, sampleRecord(id, 1, 0))
	f.Add(event, record, []byte("{}\n"))
	f.Add(append(event, record...), record[:40], []byte(nil))
	f.Add([]byte("\n\n\x00"), append([]byte("junk\n"), record...), []byte("\xff"))
	f.Fuzz(func(t *testing.T, cells, requests, telemetry []byte) {
		dir := tempDir(t)
		for name, b := range map[string][]byte{manifestFile: manifest, cellsFile: cells, requestsFile: requests, telemetryFile: telemetry} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		before := read(t, dir)
		w, run, err := Resume(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(run.Records) != len(before.Records) || len(run.Events) != len(before.Events) {
			t.Errorf("resuming changed what is read: %d/%d records, %d/%d events", len(before.Records), len(run.Records), len(before.Events), len(run.Events))
		}
		for _, c := range run.Cells() {
			_ = c.Why()
		}
		for range run.Telemetry() {
		}
		must(t, w.Close())
		for _, name := range []string{cellsFile, requestsFile, telemetryFile} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) {
				t.Errorf("%s does not end with a line after the repair", name)
			}
		}
	})
}

func FuzzScrub(f *testing.F) {
	f.Add("--api-key", "abc", "http://u:p@h/?token=x")
	f.Add("-H", "Authorization: Bearer x", "HF_TOKEN=abc")
	f.Add("--header=a: b", "bearer hf_abcdefghijklmnopqrstuvwx", "://@?&=")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		once := ScrubArgs([]string{a, b, c})
		if d := cmp.Diff(once, ScrubArgs(once)); d != "" {
			t.Errorf("scrubbing twice changes more:\n%s", d)
		}
		for _, arg := range []string{"--token", "--api-key", "--password"} {
			if got := ScrubArgs([]string{arg, a}); got[1] != Removed {
				t.Errorf("%s %q gives %q", arg, a, got)
			}
		}
		if _, err := json.Marshal(once); err != nil {
			t.Error(err)
		}
	})
}
