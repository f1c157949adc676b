// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package testguest is a guest for driver tests: a few primitives that show what a
// machine is made of (memory, disks, clock, random numbers), over the stream that
// vm.Machine.DialGuest gives.
//
// It takes the agent's place so that a driver is tested without containers: the
// suite reads raw disks and panics kernels, which no agent should offer. [Serve] is
// the guest's end, over a [Machine] that is real in vm/vmtest/testguest/init and
// simulated in vm/fake's tests; [Client] is the host's end. The greeting is that of
// vm/guest; behind it, requests and responses are one line of JSON each.
package testguest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// frameBytes is a greeting frame: mark and nonce.
	frameBytes = 4 + 16
	hello      = "FKH1"
	answer     = "FKA1"
	start      = "FKS1"
	// greetEvery is how often the host repeats its greeting.
	greetEvery = 50 * time.Millisecond
	// maxLine bounds a request or response.
	maxLine = 64 << 10
)

// Info is what a guest says about itself.
type Info struct {
	// Boot is drawn when the guest boots and stays in its memory: machines with the
	// same one carry the same memory.
	Boot string
	// MachineID is what the last Refresh set.
	MachineID string
	Time      time.Time
	// Random is 16 fresh bytes of the kernel's random source.
	Random []byte
}

// Refresh is what a guest is told after a restore.
type Refresh struct {
	Time      time.Time
	Entropy   []byte
	MachineID string
}

// Machine is what the guest's end runs on.
type Machine interface {
	Info() (Info, error)
	Refresh(Refresh) error
	// Put and Get keep a value in memory.
	Put(key, value string) error
	Get(key string) (string, error)
	// ReadSlot reads the first n bytes of an image slot's disk, past every cache.
	ReadSlot(slot, n int) ([]byte, error)
	// WriteScratch and ReadScratch access the scratch disk, past every cache.
	WriteScratch(at int64, data []byte) error
	ReadScratch(at int64, n int) ([]byte, error)
	PowerOff() error
	Panic() error
}

type request struct {
	Do      string
	Key     string
	Value   string
	Slot    int
	At      int64
	N       int
	Data    []byte
	Refresh Refresh
}

type response struct {
	Error string
	Info  Info
	Value string
	Data  []byte
}

// Serve serves one stream after the other has ended: it returns when conn fails.
// A new greeting at any time begins a new conversation.
func Serve(conn io.ReadWriter, m Machine) error {
	in := bufio.NewReaderSize(conn, maxLine)
	for {
		// Requests begin with '{', greeting frames with 'F'; the rest is left over
		// from an earlier conversation.
		first, err := in.Peek(1)
		if err != nil {
			return err
		}
		switch first[0] {
		case 'F':
			frame, err := in.Peek(frameBytes)
			if err != nil {
				return err
			}
			mark := string(frame[:4])
			reply := append([]byte(answer), frame[4:]...)
			if mark != hello && mark != start {
				_, _ = in.Discard(1)
				continue
			}
			_, _ = in.Discard(frameBytes)
			if mark == hello {
				if _, err := conn.Write(reply); err != nil {
					return err
				}
			}
		case '{':
			line, err := in.ReadSlice('\n')
			if err != nil {
				if errors.Is(err, bufio.ErrBufferFull) {
					continue
				}
				return err
			}
			var q request
			if json.Unmarshal(line, &q) != nil {
				continue
			}
			out, err := json.Marshal(handle(m, q))
			if err != nil {
				return err
			}
			if _, err := conn.Write(append(out, '\n')); err != nil {
				return err
			}
		default:
			_, _ = in.Discard(1)
		}
	}
}

func handle(m Machine, q request) (r response) {
	var err error
	switch q.Do {
	case "info":
		r.Info, err = m.Info()
	case "refresh":
		err = m.Refresh(q.Refresh)
	case "put":
		err = m.Put(q.Key, q.Value)
	case "get":
		r.Value, err = m.Get(q.Key)
	case "slot":
		r.Data, err = m.ReadSlot(q.Slot, q.N)
	case "write":
		err = m.WriteScratch(q.At, q.Data)
	case "read":
		r.Data, err = m.ReadScratch(q.At, q.N)
	case "poweroff":
		err = m.PowerOff()
	case "panic":
		err = m.Panic()
	default:
		err = fmt.Errorf("unknown request %q", q.Do)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// Client is the host's end. One call at a time.
type Client struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex
}

// Dial greets the guest until it answers or ctx ends. It owns conn.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, in: bufio.NewReaderSize(conn, maxLine)}
	if err := c.greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("greet guest: %w", err), conn.Close())
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context) error {
	// Letters only, so that a late answer is never taken for the begin of a response.
	nonce := []byte(rand.Text()[:16])
	frame := func(mark string) []byte { return append([]byte(mark), nonce...) }

	// Written from a goroutine of its own: a guest that does not listen yet may
	// leave the stream full, and over a pipe a write waits for its reader.
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(greetEvery)
		defer tick.Stop()
		for {
			_ = c.conn.SetWriteDeadline(time.Now().Add(greetEvery))
			// The newline ends a request that an earlier host began and never finished:
			// the guest would go on waiting for the rest of its line.
			_, _ = c.conn.Write(append([]byte{'\n'}, frame(hello)...))
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	var got []byte
	var b byte
	var err error
	for ; !bytes.HasSuffix(got, frame(answer)); got = append(got, b) {
		if len(got) > 4096 {
			got = got[len(got)-frameBytes:]
		}
		if b, err = c.in.ReadByte(); err != nil {
			break
		}
	}
	close(done)
	writer.Wait()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return err
	}
	_ = c.conn.SetDeadline(time.Time{})
	_, err = c.conn.Write(frame(start))
	return err
}

// Close ends the stream.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) call(ctx context.Context, q request) (response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := json.Marshal(q)
	if err != nil {
		return response{}, err
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return response{}, fmt.Errorf("ask guest to %s: %w", q.Do, errors.Join(err, ctx.Err()))
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return response{}, fmt.Errorf("ask guest to %s: %w", q.Do, errors.Join(err, ctx.Err()))
		}
		// Answers to greetings that crossed ours come first.
		i := bytes.IndexByte(line, '{')
		var r response
		if i < 0 || json.Unmarshal(line[i:], &r) != nil {
			continue
		}
		if r.Error != "" {
			return r, fmt.Errorf("guest could not %s: %s", q.Do, r.Error)
		}
		return r, nil
	}
}

// Info asks the guest about itself.
func (c *Client) Info(ctx context.Context) (Info, error) {
	r, err := c.call(ctx, request{Do: "info"})
	return r.Info, err
}

// Refresh gives the guest time, entropy and identity.
func (c *Client) Refresh(ctx context.Context, v Refresh) error {
	_, err := c.call(ctx, request{Do: "refresh", Refresh: v})
	return err
}

// Put keeps a value in the guest's memory.
func (c *Client) Put(ctx context.Context, key, value string) error {
	_, err := c.call(ctx, request{Do: "put", Key: key, Value: value})
	return err
}

// Get returns a kept value, empty if there is none.
func (c *Client) Get(ctx context.Context, key string) (string, error) {
	r, err := c.call(ctx, request{Do: "get", Key: key})
	return r.Value, err
}

// ReadSlot reads the beginning of an image slot.
func (c *Client) ReadSlot(ctx context.Context, slot, n int) ([]byte, error) {
	r, err := c.call(ctx, request{Do: "slot", Slot: slot, N: n})
	return r.Data, err
}

// WriteScratch writes to the scratch disk.
func (c *Client) WriteScratch(ctx context.Context, at int64, data []byte) error {
	_, err := c.call(ctx, request{Do: "write", At: at, Data: data})
	return err
}

// ReadScratch reads from the scratch disk.
func (c *Client) ReadScratch(ctx context.Context, at int64, n int) ([]byte, error) {
	r, err := c.call(ctx, request{Do: "read", At: at, N: n})
	return r.Data, err
}

// PowerOff asks the guest to end. An answer may not come.
func (c *Client) PowerOff(ctx context.Context) error {
	_, err := c.call(ctx, request{Do: "poweroff"})
	return err
}

// Panic asks the guest's kernel to panic. An answer may not come.
func (c *Client) Panic(ctx context.Context) error {
	_, err := c.call(ctx, request{Do: "panic"})
	return err
}
