package httpbackends

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// testKey holds characters that JSON may and Go must escape.
const testKey = `sk-AbCdEf/gHiJ"kL\mNoPqRsTuV`

// leaks tells whether text has the key in it, or its beginning where it was cut.
func leaks(text, key string) bool {
	quoted := strconv.Quote(key)
	for _, s := range []string{key, quoted[1 : len(quoted)-1], strings.ReplaceAll(key, "/", `\/`), key[:6] + "…", key[:6] + `"…`} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// A server that sends the key back, wherever it can, does not bring it into a
// message.
func TestEchoedKey(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.APIKey = testKey }))
	bearer := "Bearer " + testKey
	inJSON := strings.Trim(strconv.Quote(bearer), `"`)
	escaped := strings.ReplaceAll(inJSON, "/", `\/`)
	long := strings.Repeat("x", 280)
	for name, answer := range map[string]func(*call){
		"error message":               answerJSON(401, `{"error":{"message":"bad key: `+inJSON+`"}}`),
		"error message, escaped":      answerJSON(401, `{"error":{"message":"bad key: `+escaped+`"}}`),
		"error message, cut":          answerJSON(401, `{"error":{"message":"`+long+inJSON+`"}}`),
		"error without message":       answerJSON(400, `{"x":"`+escaped+`"}`),
		"error that is no JSON":       answerJSON(500, "<h1>"+bearer+"</h1>"),
		"error type and code":         answerJSON(400, `{"error":{"type":"`+inJSON+`","code":"`+inJSON+`"}}`),
		"error event":                 streamOf(`data: {"error":{"message":"` + inJSON + `"}}` + "\n\n"),
		"error event that is no JSON": streamOf(`data: {"error":` + bearer + "\n\n"),
		"event that is no JSON":       streamOf("data: " + bearer + "\n\n"),
		"event that is no JSON, cut":  streamOf("data: " + long[:40] + bearer + "\n\n"),
		"event, escaped":              streamOf("data: [" + escaped + "\n\n"),
		"finish_reason":               streamOf(event(" w", 1), `data: {"choices":[{"finish_reason":"`+inJSON+`"}]}`+"\n\n", doneMark),
		"content type":                raw("HTTP/1.1 200 OK\r\nContent-Type: " + bearer + "\r\nContent-Length: 0\r\n\r\n"),
		"content type, body":          raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + bearer),
		"content encoding":            raw("HTTP/1.1 200 OK\r\nContent-Encoding: " + bearer + "\r\n\r\n"),
		"content length":              raw("HTTP/1.1 200 OK\r\nContent-Length: " + bearer + "\r\n\r\n"),
		"transfer encoding":           raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + bearer + "\r\n\r\n"),
		"retry after":                 raw("HTTP/1.1 429 Oh\r\nRetry-After: " + bearer + "\r\nContent-Length: 0\r\n\r\n"),
		"reason":                      raw("HTTP/1.1 500 " + bearer + "\r\nContent-Length: 9\r\n\r\n"),
		"status line":                 raw(bearer + "\r\n\r\n"),
		"status line, cut":            raw(long[:48] + bearer + "\r\n\r\n"),
		"header line":                 raw("HTTP/1.1 200 OK\r\n" + bearer + "\r\n\r\n"),
		"chunk size":                  raw(streamHead + bearer + "\r\n"),
		"location":                    raw("HTTP/1.1 307 Oh\r\nLocation: http://u:" + testKey + "@h/" + "\r\nContent-Length: 0\r\n\r\n"),
	} {
		for _, stream := range []bool{true, false} {
			srv.set(answer)
			if err := s.Prepare(testRequest(stream)); err != nil {
				t.Fatal(err)
			}
			err := s.Generate(context.Background(), bench.NewTrace(8))
			if err == nil || leaks(err.Error(), testKey) || strings.Contains(err.Error(), "AbCd") || strings.Contains(err.Error(), "RsTuV") {
				t.Errorf("%s, stream %v: %v", name, stream, err)
			}
			if name != "location" && stream && !strings.Contains(fmt.Sprint(err), "[API key]") && !strings.Contains(fmt.Sprint(err), "no reason given") {
				t.Errorf("%s: the test does not bring the key into the message: %v", name, err)
			}
		}
	}
}

// Nor does the key come through at any place of any row of the fault table.
func TestFaultsKeepTheKey(t *testing.T) {
	const key = "sk-0123456789"
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.APIKey = key }))
	s.most, s.events = 64<<10, newEvents(16<<10) // what has no end shall end soon
	hidden := 0
	for _, tc := range faults {
		if tc.answer == nil || tc.timeout || tc.limits != (bench.Limits{}) {
			continue // nothing of what the server says is in the message
		}
		for at := 0; at < 400; at += 13 {
			srv.set(func(c *call) {
				done := 0
				c.mangle = func(p []byte) []byte {
					if i := at - done; i >= 0 && i+len(key) <= len(p) {
						p = append([]byte(nil), p...)
						copy(p[i:], key)
					}
					done += len(p)
					return p
				}
				tc.answer(c)
				c.close = true // the key may stand where the length was
			})
			if err := s.Prepare(testRequest(tc.stream)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := s.Generate(ctx, bench.NewTrace(8))
			cancel()
			if err == nil {
				continue
			}
			if leaks(err.Error(), key) {
				t.Errorf("%s, key at %d: %v", tc.name, at, err)
			}
			if strings.Contains(err.Error(), "[API key]") {
				hidden++
			}
		}
	}
	if hidden < 50 {
		t.Errorf("the key was in only %d messages: the test does not try what it should", hidden)
	}
}

// Off the clock, net/http and encoding/json quote what they cannot read.
func TestOpenKeepsTheKey(t *testing.T) {
	const key = "sk-0123456789"
	for name, answer := range map[string]string{
		"error":       "HTTP/1.1 401 Oh\r\nContent-Length: 13\r\n\r\n" + key,
		"status line": "HTTP/1.1 " + key + "\r\n\r\n",
		"header":      "HTTP/1.1 200 OK\r\n" + key + "\r\n\r\n",
		"encoding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + key + "\r\n\r\n",
		"redirect":    "HTTP/1.1 302 Oh\r\nLocation: http://u:" + key + "@h/\r\nContent-Length: 0\r\n\r\n",
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprint(c, answer)
			c.Close()
		}))
		_, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.URL, APIKey: key})
		srv.Close()
		if err == nil || leaks(err.Error(), key) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "redirect" && !strings.Contains(fmt.Sprint(err), "[API key]") {
			t.Errorf("%s: the test does not bring the key into the message: %v", name, err)
		}
	}
}
