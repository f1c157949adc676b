// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// answering is a shim that answers every connection with these bytes, again and again if
// endless, whatever it is asked.
func answering(t *testing.T, text string, endless bool) *Client {
	t.Helper()
	dir, l := listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
					return
				}
				for {
					if _, err := io.WriteString(conn, text); err != nil || !endless {
						return
					}
				}
			}()
		}
	}()
	c := NewClient(dir)
	t.Cleanup(c.Close)
	return c
}

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// Whatever a shim answers, a node gets an error that says that it could not ask: nothing
// hangs, and nothing that the shim made up is believed.
func TestHostileAnswers(t *testing.T) {
	long := strings.Repeat("x", 4<<10)
	for name, c := range map[string]struct {
		text    string
		endless bool
	}{
		"nothing":            {text: ""},
		"no HTTP":            {text: "SSH-2.0-OpenSSH_9.6\r\n"},
		"garbage":            {text: ok("{garbage")},
		"another type":       {text: ok("[1,2,3]")},
		"two values":         {text: ok(`{"state":"running"}{"state":"paused"}`)},
		"an unknown state":   {text: ok(`{"state":"sleeping","files":["../../etc/passwd"]}`)},
		"no state":           {text: ok(`{"files":["/etc/passwd"]}`)},
		"less than promised": {text: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"},
		"another status":     {text: "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\noops"},
		"no error's text":    {text: "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}"},
		"an unknown kind":    {text: "HTTP/1.1 500 X\r\nContent-Length: 16\r\n\r\n" + `{"kind":"Weird"}`},
		"a redirect":         {text: "HTTP/1.1 302 Found\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n"},
		"an endless head":    {text: "HTTP/1.1 200 OK\r\nX: " + long + "\r\nHTTP/1.1: " + long + "\r\n", endless: true},
		"an endless line":    {text: long, endless: true},
		"an endless body":    {text: "HTTP/1.1 200 OK\r\n\r\n" + long, endless: true},
		"an endless error":   {text: "HTTP/1.1 500 X\r\n\r\n" + long, endless: true},
		"another protocol":   {text: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
		"a switch to none":   {text: "HTTP/1.1 101 Switching Protocols\r\n\r\n"},
		"a long body":        {text: ok(`{"state":"running","files":[],"x":"` + strings.Repeat("x", maxBodyBytes) + `"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			c := answering(t, c.text, c.endless)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, start := c.Start(ctx)
			_, state := c.State(ctx)
			_, save := c.Save(ctx, "/d")
			_, dial := c.Dial(ctx, 1)
			_, versions := c.Versions(ctx)
			for call, err := range map[string]error{"start": start, "state": state, "save": save, "dial": dial, "versions": versions} {
				switch {
				case call == "save" && (strings.HasPrefix(name, "no state") || strings.HasPrefix(name, "an unknown state")) && err == nil:
					t.Errorf("save: a file outside of the directory is believed")
				case err == nil && call == "save":
					// Of an answer that is none of its own it may make an empty list.
				case !errors.Is(err, vm.ErrUnavailable):
					t.Errorf("%s: %v, want ErrUnavailable", call, err)
				case len(err.Error()) > 2*maxMessageBytes:
					t.Errorf("%s: an error of %d bytes", call, len(err.Error()))
				}
			}
		})
	}
}

// An error's text is bounded by who reads it, too.
func TestHostileMessage(t *testing.T) {
	body, err := json.Marshal(ErrorReply{"NoSpace", strings.Repeat("x", maxBodyBytes/2)})
	if err != nil {
		t.Fatal(err)
	}
	c := answering(t, fmt.Sprintf("HTTP/1.1 507 X\r\nContent-Length: %d\r\n\r\n%s", len(body), body), false)
	_, call := c.State(t.Context())
	_, dial := c.Dial(t.Context(), 1)
	for _, err := range []error{call, dial} {
		if !errors.Is(err, vm.ErrNoSpace) || len(err.Error()) > maxMessageBytes {
			t.Errorf("got an error of %d bytes, %.40v", len(err.Error()), err)
		}
	}
}

// What comes with the answer in one read belongs to the stream.
func TestDialDataBehindAnswer(t *testing.T) {
	text := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + Protocol + "\r\nConnection: Upgrade\r\n\r\n" + strings.Repeat("stream ", 2000)
	conn, err := answering(t, text, false).Dial(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.ReadAll(iotest.OneByteReader(conn))
	if err != nil || string(got) != strings.Repeat("stream ", 2000) {
		t.Errorf("read %d bytes, %v, want %d", len(got), err, len("stream ")*2000)
	}
}

func TestVersionMismatch(t *testing.T) {
	_, err := answering(t, ok(`{"protocols":[7,8],"build":"v9.9.9"}`), false).Versions(t.Context())
	if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "v9.9.9") || !strings.Contains(err.Error(), "[7 8]") {
		t.Errorf("error is %v, want ErrUnavailable that names the shim's versions", err)
	}
	if v, err := answering(t, ok(`{"protocols":[7,1],"build":"later"}`), false).Versions(t.Context()); err != nil || v.Build != "later" {
		t.Errorf("a shim that speaks ours as well: %+v, %v", v, err)
	}
}

// silent is a client of a shim that takes connections and never answers, in a bubble.
func silent(t *testing.T) *Client {
	c := NewClient("nowhere")
	c.http.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs); _ = theirs.Close() }()
		return ours, nil
	}
	t.Cleanup(c.Close)
	return c
}

// A shim that never answers is unavailable after a while; where the work may take any
// time, when the caller says so.
func TestNeverAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		call  func(c *Client, ctx context.Context) error
		after time.Duration // 0: only ctx ends it
	}{
		"versions": {func(c *Client, ctx context.Context) error { _, err := c.Versions(ctx); return err }, callTimeout},
		"state":    {func(c *Client, ctx context.Context) error { _, err := c.State(ctx); return err }, callTimeout},
		"pause":    {(*Client).Pause, callTimeout},
		"resume":   {(*Client).Resume, callTimeout},
		"stop":     {func(c *Client, ctx context.Context) error { return c.Stop(ctx, time.Minute) }, callTimeout + time.Minute},
		"start":    {func(c *Client, ctx context.Context) error { _, err := c.Start(ctx); return err }, 0},
		"save":     {func(c *Client, ctx context.Context) error { _, err := c.Save(ctx, "/d"); return err }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := silent(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				began := time.Now()
				err := c.call(client, ctx)
				after := c.after
				if after == 0 {
					after = time.Hour
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error is %v, want that of ctx", err)
					}
				} else if !errors.Is(err, vm.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error is %v, want ErrUnavailable", err)
				}
				if took := time.Since(began); took != after {
					t.Errorf("it took %s, want %s", took, after)
				}
			})
		})
	}
}

func TestDialNeverAnswered(t *testing.T) {
	dir, l := listen(t)
	taken := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			taken <- conn
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := NewClient(dir).Dial(ctx, 1)
		result <- err
	}()
	conn := <-taken
	defer conn.Close()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("error is %v, want Canceled only", err)
	}
	// The connection is not kept.
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the shim's end: %v", err)
	}
}

// ask sends a request as it is and returns the status of the answer.
func ask(t *testing.T, c *Client, method, path string, body io.Reader) (int, ErrorReply) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://shim"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	var e ErrorReply
	_ = decode(resp.Body, &e) // answers of net/http are text
	return resp.StatusCode, e
}

func TestHostileRequests(t *testing.T) {
	f := newFake()
	f.dial = func(_ context.Context, _ uint32, conn net.Conn) { t.Error("dialled"); conn.Close() }
	c := serve(t, f)
	huge := func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte(" "), maxBodyBytes+1)) }
	for _, r := range []struct {
		method, path string
		body         io.Reader
		want         int
	}{
		{http.MethodPost, "/v1/save", strings.NewReader("garbage"), http.StatusBadRequest},
		{http.MethodPost, "/v1/save", nil, http.StatusBadRequest},
		{http.MethodPost, "/v1/save", strings.NewReader(`{"dir":7}`), http.StatusBadRequest},
		{http.MethodPost, "/v1/save", strings.NewReader(`{"dir":"/d"} {}`), http.StatusBadRequest},
		{http.MethodPost, "/v1/save", huge(), http.StatusBadRequest},
		{http.MethodPost, "/v1/stop", strings.NewReader(`{"graceMillis":"1"}`), http.StatusBadRequest},
		{http.MethodPost, "/v1/stop", strings.NewReader(`{"graceMillis":1e99}`), http.StatusBadRequest},
		{http.MethodPost, "/v1/stop", huge(), http.StatusBadRequest},
		{http.MethodGet, "/v1/dial", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/dial?port=", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/dial?port=-1", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/dial?port=4294967296", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/dial?port=0x10", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/nothing", nil, http.StatusNotFound},
		{http.MethodGet, "/v2/state", nil, http.StatusNotFound},
		{http.MethodGet, "/v1/start", nil, http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/stop", nil, http.StatusMethodNotAllowed},
	} {
		status, e := ask(t, c, r.method, r.path, r.body)
		if status != r.want || status == http.StatusBadRequest && e.Kind != "InvalidConfig" {
			t.Errorf("%s %s: status %d, %+v, want %d", r.method, r.path, status, e, r.want)
		}
	}
	select {
	case got := <-f.asked:
		t.Errorf("the machine was asked for %q", got)
	default:
	}
	if _, err := c.State(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: firkin-stream\r\n\r\nbytes"))
	f.Add([]byte("HTTP/1.1 507 X\r\n\r\n" + `{"kind":"NoSpace","message":"full"}`))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = http.ReadRequest(bufio.NewReader(theirs))
			_, _ = theirs.Write(answer)
			_ = theirs.Close()
		}()
		defer ours.Close()
		reader, err := upgrade(ours, 1)
		if (reader == nil) == (err == nil) {
			t.Errorf("reader %v and error %v", reader, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"NoSpace","message":"full","graceMillis":5,"dir":"/d","files":["a"],"state":"running"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var (
			stop  StopRequest
			reply ErrorReply
		)
		if decode(bytes.NewReader(data), &stop) == nil && stop.Grace() < 0 {
			t.Errorf("a grace of %s", stop.Grace())
		}
		if decode(bytes.NewReader(data), &reply) == nil {
			if err := decodeError(reply); err.Error() == "" || len(err.Error()) > maxMessageBytes {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
	})
}
