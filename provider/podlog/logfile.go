// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// rotatedFormat is the kubelet's suffix of a rotated log file.
const rotatedFormat = "20060102-150405"

// maxBatchBytes bounds the memory that formatting a guest's records takes.
const maxBatchBytes = 256 << 10

// appending is how the current file is opened.
const appending = os.O_APPEND | os.O_CREATE | os.O_WRONLY

// position is the content of <attempt>.pos. It is written when a file begins, and
// never between: what is in the file itself is counted.
type position struct {
	// Base is the number of records in the files before the current one.
	Base uint64 `json:"base"`
	// Rotated is the name that the file before the current one was given.
	Rotated string `json:"rotated"`
}

// logFile is the log of one attempt: the current file and the rotated ones before
// it. One writer and any number of readers may use it at once.
//
// # Why every record is in the log once
//
// The number of the last record is Base + the lines of the current file. Both
// change in one place only:
//
//   - A batch is appended by one write. Ended in its midst (a kill does that to a
//     large write, a full disk as well), it leaves whole lines and at most one torn
//     one at the end. open cuts the torn one off and counts the others, so they
//     are asked for again, or not, exactly as the file says.
//   - A rotation is (1) sync the current file, (2) write the position {Base: last
//     record, Rotated: name} by a synced temporary file and a rename, (3) rename
//     the current file to that name, (4) make a new current file, (5) delete the
//     oldest. Ended before the rename of (2), nothing has happened yet. Ended after
//     it, open sees a position whose Rotated is not there: the current file is
//     still the one before, and (3) is done then. Ended after (3), the current file
//     is absent, hence empty, and Base is right. Rotated cannot be missing because
//     (5) deleted it: the newest rotated file is never deleted.
//
// A record is acknowledged to the guest after a sync only, of the file and, once after
// each open, of the names above it: a guest forgets what was acknowledged. A sync that
// fails, like any other fault, makes the log be opened anew, by the same rules.
type logFile struct {
	fs       durable.FS
	now      func() time.Time
	dir      string // of the container
	name     string // of the current file
	maxBytes int64
	maxFiles int

	mu        sync.Mutex
	file      durable.File  // guarded by mu; nil when broken or closed
	named     bool          // guarded by mu; the names of the file and its directories survive the host
	seq       uint64        // guarded by mu; records in the log
	size      int64         // guarded by mu; bytes of whole lines in the current file
	currentID int           // guarded by mu; counts rotations: tells readers where they are
	rotated   []string      // guarded by mu; oldest first; the last has number currentID-1
	ready     bool          // guarded by mu; open succeeded once, so the fields above are true
	ended     bool          // guarded by mu; nothing more will come
	blocked   bool          // guarded by mu; the disk failed, and has taken nothing since
	changed   chan struct{} // guarded by mu; closed when anything above changes
}

// open brings the files of a log into order and makes it ready to append. It is
// also the way back after any error of append, rotate or sync.
func (l *logFile) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.reopen()
	l.blocked = (l.blocked || err != nil) && !errors.Is(err, errDamaged)
	return err
}

// errDamaged: what is written of a log cannot be read, which does not get better by waiting.
var errDamaged = errors.New("it is damaged: what was copied before stays, and nothing is added")

func (l *logFile) reopen() error { // l.mu is held
	if l.file != nil {
		l.file.Close() // what it has to say was said by the error that led here
		l.file = nil
	}
	l.named = false
	if err := durable.MakeDir(l.fs, l.dir, durable.Unsynced); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	if err := durable.Sweep(l.fs, l.dir); err != nil {
		return fmt.Errorf("sweep log directory: %w", err)
	}
	pos, err := l.readPosition()
	if err != nil {
		return err
	}
	rotated, err := rotatedFiles(l.dir, l.name)
	if err != nil {
		return fmt.Errorf("list log files: %w", err)
	}
	if pos.Rotated != "" && !slices.Contains(rotated, pos.Rotated) {
		// The rotation ended between its steps 2 and 3. After a loss of power even the
		// current file may be missing; the log then goes on without it.
		err := l.fs.Rename(l.current(), filepath.Join(l.dir, pos.Rotated))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("finish rotation: %w", err)
		}
		if err == nil {
			rotated = append(rotated, pos.Rotated)
		}
	}
	lines, size, torn, err := countLines(l.current())
	if err != nil {
		return err
	}
	file, err := l.fs.OpenFile(l.current(), appending)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if torn {
		if err := file.Truncate(size); err != nil {
			file.Close()
			return fmt.Errorf("cut torn line: %w", err)
		}
	}
	if len(l.rotated) > 0 {
		last := l.rotated[len(l.rotated)-1]
		for _, name := range rotated {
			if name > last {
				l.currentID++
			}
		}
	} else {
		l.currentID += len(rotated)
	}
	l.file, l.rotated, l.seq, l.size, l.ready = file, rotated, pos.Base+lines, size, true
	l.announce()
	return l.prune()
}

func (l *logFile) isReady() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

func (l *logFile) isBlocked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked
}

// append writes records to the log, all of them or, with an error, the first few.
// An error that wraps ErrGuestOutput leaves the log as good as it was; after any
// other the log must be opened again.
func (l *logFile) append(records []*agentv1.OutputRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fmt.Errorf("append to log: %w", os.ErrClosed)
	}
	defer l.announce()
	var buf []byte
	var count uint64
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		if _, err := l.file.Write(buf); err != nil {
			return l.broken(fmt.Errorf("append to log: %w", err))
		}
		l.size += int64(len(buf))
		l.seq += count
		l.blocked = false
		buf, count = buf[:0], 0
		return nil
	}
	for _, r := range records {
		start := len(buf)
		var bad error
		buf, bad = appendRecord(buf, r, l.seq+count+1, l.now())
		if bad != nil {
			if err := flush(); err != nil {
				return err
			}
			return bad
		}
		count++
		if before := l.size + int64(start); before > 0 && l.size+int64(len(buf)) > l.maxBytes {
			// This line is the first of the next file.
			held := slices.Clone(buf[start:])
			buf, count = buf[:start], count-1
			if err := flush(); err != nil {
				return err
			}
			if err := l.rotate(); err != nil {
				return l.broken(err)
			}
			buf, count = append(buf[:0], held...), 1
		}
		if len(buf) >= maxBatchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// sync makes everything appended so far survive a loss of power and returns the
// number of the last record.
func (l *logFile) sync() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, fmt.Errorf("sync log: %w", os.ErrClosed)
	}
	if err := l.file.Sync(); err != nil {
		return 0, l.broken(fmt.Errorf("sync log: %w", err))
	}
	if !l.named {
		// <pod UID>/logs/<container>: the record of the pod has synced the name of the first.
		logs := filepath.Dir(l.dir)
		for _, dir := range []string{l.dir, logs, filepath.Dir(logs)} {
			if err := l.fs.SyncDir(dir); err != nil {
				return 0, l.broken(fmt.Errorf("sync log directory: %w", err))
			}
		}
		l.named = true
	}
	l.blocked = false
	return l.seq, nil
}

// last is the number of the last record in the log.
func (l *logFile) last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// end closes the file and tells readers that nothing more will come.
func (l *logFile) end() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.announce()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// rotate begins a new file. See the type for its steps.
func (l *logFile) rotate() error { // l.mu is held
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("sync log before rotation: %w", err)
	}
	name := l.rotatedName()
	if err := l.writePosition(position{Base: l.seq, Rotated: name}); err != nil {
		return err
	}
	if err := l.file.Close(); err != nil {
		l.file = nil
		return fmt.Errorf("close log before rotation: %w", err)
	}
	l.file = nil
	if err := l.fs.Rename(l.current(), filepath.Join(l.dir, name)); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	l.rotated = append(l.rotated, name)
	l.currentID++
	l.size = 0
	l.announce()
	file, err := l.fs.OpenFile(l.current(), appending)
	if err != nil {
		return fmt.Errorf("open log after rotation: %w", err)
	}
	l.file = file
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	return l.prune()
}

// prune deletes the oldest rotated files beyond the limit.
func (l *logFile) prune() error { // l.mu is held
	for len(l.rotated) > l.maxFiles-1 {
		if err := l.fs.RemoveAll(filepath.Join(l.dir, l.rotated[0])); err != nil {
			return fmt.Errorf("delete rotated log: %w", err)
		}
		l.rotated = l.rotated[1:]
	}
	return nil
}

// broken closes the file after an error, so that nothing is appended to what may
// end in a torn line before open has looked at it.
func (l *logFile) broken(err error) error { // l.mu is held
	l.blocked = true
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	return err
}

// announce wakes the readers.
func (l *logFile) announce() { // l.mu is held
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *logFile) current() string { return filepath.Join(l.dir, l.name) }

func (l *logFile) positionPath() string {
	return filepath.Join(l.dir, strings.TrimSuffix(l.name, ".log")+".pos")
}

// rotatedName is the kubelet's name for a file rotated now, or, since the names are
// the order, the next free one after the newest.
func (l *logFile) rotatedName() string { // l.mu is held
	t := l.now().UTC().Truncate(time.Second)
	if len(l.rotated) > 0 {
		suffix := strings.TrimPrefix(l.rotated[len(l.rotated)-1], l.name+".")
		if newest, err := time.Parse(rotatedFormat, suffix); err == nil && !t.After(newest) {
			t = newest.Add(time.Second)
		}
	}
	return l.name + "." + t.Format(rotatedFormat)
}

func (l *logFile) readPosition() (position, error) {
	data, err := durable.ReadFile(l.fs, l.positionPath(), 4<<10)
	if errors.Is(err, os.ErrNotExist) {
		return position{}, nil
	}
	if err != nil {
		return position{}, fmt.Errorf("read log position: %w", err)
	}
	var pos position
	if err := json.Unmarshal(data, &pos); err != nil {
		return position{}, fmt.Errorf("read log position %q: %w: %w", l.positionPath(), errDamaged, err)
	}
	if pos.Rotated != "" && !isRotatedName(l.name, pos.Rotated) {
		return position{}, fmt.Errorf("read log position %q: %w: %q is no rotated file of this log", l.positionPath(), errDamaged, pos.Rotated)
	}
	return pos, nil
}

func (l *logFile) writePosition(pos position) error {
	data, err := json.Marshal(pos)
	if err != nil {
		return fmt.Errorf("write log position: %w", err)
	}
	if err := durable.Replace(l.fs, l.positionPath(), data, durable.Synced); err != nil {
		return fmt.Errorf("write log position: %w", err)
	}
	return nil
}

// rotatedFiles lists the rotated files of a log, oldest first.
func rotatedFiles(dir, name string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries { // ReadDir sorts, and the names sort by time
		if isRotatedName(name, e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func isRotatedName(current, name string) bool {
	suffix, ok := strings.CutPrefix(name, current+".")
	if !ok {
		return false
	}
	_, err := time.Parse(rotatedFormat, suffix)
	return err == nil
}

// countLines counts the whole lines of a file and the bytes they take. torn: there
// is more behind them. An absent file is empty.
func countLines(path string) (lines uint64, size int64, torn bool, err error) {
	f, err := os.Open(filepath.Clean(path))
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("count log lines: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 256<<10)
	for {
		b, err := r.ReadSlice('\n')
		switch {
		case err == nil:
			lines++
			size += int64(len(b))
		case errors.Is(err, io.EOF):
			return lines, size, len(b) > 0, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return lines, size, true, nil // no line is that long: zeros after a loss of power
		default:
			return 0, 0, false, fmt.Errorf("count log lines: %w", err)
		}
	}
}
