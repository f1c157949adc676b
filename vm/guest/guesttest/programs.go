// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// Programs of the simulated guest. Each is what the first argument may be:
//
//	echo WORD...     print the words
//	warn WORD...     print them on standard error
//	printn WORD...   print them without a newline
//	print N [PREFIX] print N lines "PREFIX1", "PREFIX2"...; PREFIX is "line "
//	tick N D         print N lines, waiting D before each
//	spam N           print N bytes, in lines of 100
//	exit N           end with code N
//	sleep D          wait D: seconds, or as Go writes durations; then end with 0
//	hang             wait for ever and ignore all signals but SIGKILL
//	graceful N       wait for a signal and end with code N
//	cat [PATH]       copy standard input, or a file of a volume
//	write PATH WORD  write a file of the container's root file system
//	full             fail as a write to a full disk does
//	env, pwd, args   print the environment, the working directory, the arguments
//	size             print the terminal's size, and again when it changes, until input ends
//	oom              end as if the kernel had killed it for want of memory
//	do LINE...       run each line, split at spaces, until one ends with another code than 0
//
// Any other program cannot be executed.
var Programs = []string{"echo", "warn", "printn", "print", "tick", "spam", "exit", "sleep", "hang", "graceful", "cat", "write", "full", "env", "pwd", "args", "size", "oom", "do"}

func known(args []string) error {
	if !slices.Contains(Programs, filepath.Base(args[0])) {
		return &agent.StartError{Err: fmt.Errorf("exec: %q: executable file not found in $PATH", args[0])}
	}
	return nil
}

// run executes a program and returns its exit code.
func (p *simProcess) run(args []string) int {
	arg := func(i int, def string) string {
		if i < len(args) {
			return args[i]
		}
		return def
	}
	number := func() int {
		n, _ := strconv.Atoi(arg(1, "0"))
		return n
	}
	var err error
	switch filepath.Base(args[0]) {
	case "echo":
		_, err = fmt.Fprintln(p.out(), strings.Join(args[1:], " "))
	case "warn":
		_, err = fmt.Fprintln(p.err(), strings.Join(args[1:], " "))
	case "printn":
		_, err = fmt.Fprint(p.out(), strings.Join(args[1:], " "))
	case "print":
		for i := 1; i <= number() && err == nil; i++ {
			_, err = fmt.Fprintf(p.out(), "%s%d\n", arg(2, "line "), i)
		}
	case "tick":
		for i := 1; i <= number() && err == nil; i++ {
			if err = p.sleep(arg(2, "1")); err == nil {
				_, err = fmt.Fprintf(p.out(), "tick %d\n", i)
			}
		}
	case "spam":
		line := append(bytes.Repeat([]byte("x"), 99), '\n')
		block := bytes.Repeat(line, 300)
		for n := number(); n > 0 && err == nil; n -= len(block) {
			_, err = p.out().Write(block[:min(n, len(block))])
		}
	case "exit":
		return number()
	case "sleep":
		err = p.sleep(arg(1, "0"))
	case "hang":
		p.mu.Lock()
		p.ignores = true
		p.mu.Unlock()
		<-p.killed
	case "graceful":
		n := number()
		p.mu.Lock()
		p.onTerm = &n
		p.mu.Unlock()
		<-p.killed
	case "cat":
		return p.cat(arg(1, ""))
	case "write":
		err = p.write(arg(1, ""), arg(2, ""))
	case "full":
		_, _ = fmt.Fprintln(p.err(), "write: No space left on device")
		return 1
	case "env":
		_, err = fmt.Fprintln(p.out(), strings.Join(p.env, "\n"))
	case "pwd":
		_, err = fmt.Fprintln(p.out(), p.dir)
	case "args":
		_, err = fmt.Fprintf(p.out(), "%q\n", args)
	case "size":
		err = p.size()
	case "oom":
		p.mu.Lock()
		p.oom = true
		p.mu.Unlock()
		p.end(9)
	case "do":
		for _, line := range args[1:] {
			words := strings.Fields(line)
			if len(words) == 0 {
				continue
			}
			if known(words) != nil {
				_, _ = fmt.Fprintf(p.err(), "%s: not found\n", words[0])
				return 127
			}
			if code := p.run(words); code != 0 {
				return code
			}
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

// in is the input; on a terminal it ends with Ctrl-D.
func (p *simProcess) in() io.Reader {
	if !p.tty {
		return p.inR
	}
	return readerFunc(func(b []byte) (int, error) {
		n, err := p.inR.Read(b)
		if i := bytes.IndexByte(b[:n], 0x04); i >= 0 {
			return i, io.EOF
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func (p *simProcess) out() io.Writer { return p.outW }

func (p *simProcess) err() io.Writer {
	if p.errW == nil {
		return p.outW
	}
	return p.errW
}

func (p *simProcess) sleep(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return err
		}
		d = time.Duration(f * float64(time.Second))
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.killed:
		return errKilled
	}
}

func (p *simProcess) cat(path string) int {
	var in io.Reader = strings.NewReader("")
	switch {
	case path != "":
		data, err := p.file(path)
		if err != nil {
			_, _ = fmt.Fprintf(p.err(), "cat: %s: No such file or directory\n", path)
			return 1
		}
		in = bytes.NewReader(data)
	case p.inR != nil:
		in = p.in()
	}
	if _, err := io.Copy(p.out(), in); err != nil {
		return 1
	}
	return 0
}

// file reads a file of a volume, of the pod or of a named layer.
func (p *simProcess) file(path string) ([]byte, error) {
	for _, m := range p.spec.Mounts {
		if rest, ok := strings.CutPrefix(path, m.Target); ok && (rest == "" || rest[0] == '/') {
			return os.ReadFile(filepath.Join(m.Dir, m.SubPath, rest))
		}
	}
	switch path {
	case "/etc/hosts":
		return p.spec.Pod.Hosts, nil
	case "/etc/resolv.conf":
		return p.spec.Pod.ResolvConf, nil
	case "/etc/hostname":
		return []byte(p.spec.Pod.Hostname + "\n"), nil
	}
	for _, dir := range append([]string{p.spec.Upper}, p.spec.LowerLayers...) {
		if data, err := os.ReadFile(filepath.Join(dir, path)); dir != "" && err == nil {
			return data, nil
		}
	}
	return nil, os.ErrNotExist
}

// write makes a file in the writable layer, when it is a named one: what else a
// container writes nobody can see here.
func (p *simProcess) write(path, word string) error {
	if p.spec.Upper == "" {
		return nil
	}
	path = filepath.Join(p.spec.Upper, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(word+"\n"), 0o600)
}

// size prints the size of the terminal until its input ends.
func (p *simProcess) size() error {
	if p.inR == nil {
		return errKilled
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, p.in())
	}()
	for {
		p.mu.Lock()
		cols, rows := p.cols, p.rows
		p.mu.Unlock()
		if _, err := fmt.Fprintf(p.out(), "%dx%d\n", cols, rows); err != nil {
			return err
		}
		select {
		case <-p.resized:
		case <-ended:
			return nil
		case <-p.killed:
			return errKilled
		}
	}
}
