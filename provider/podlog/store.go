// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
)

// ErrNoLog means that there is no log of this attempt, not even an empty one.
var ErrNoLog = errors.New("no log of this container")

// Options of a Store. The zero value has the kubelet's defaults.
type Options struct {
	// MaxFileBytes is the size at which a file is rotated; 0 means 10 MiB.
	MaxFileBytes int64
	// MaxFiles is the number of files of one attempt, at least 2; 0 means 5.
	MaxFiles int
	// SyncInterval is the longest time that output stays in the guest's spool and off
	// the disk after it was appended; 0 means 1 s.
	SyncInterval time.Duration
	// FirstOutput, when not nil, is told when the first record of an attempt reached this
	// host. It must not block.
	FirstOutput func(c provider.ContainerRef, at time.Time)
	// Logger is told of connections and disks that fail; nil means silence.
	Logger *slog.Logger

	fs  fileSystem       // tests end the process in it
	now func() time.Time // tests of rotation
}

// Store keeps the logs of all pods of the node. Safe for concurrent use; only one
// Store of one process may write to a directory at a time.
type Store struct {
	dir  string
	opts Options

	mu   sync.Mutex
	live map[string]*logFile // guarded by mu; logs with a Copy under way, by path of the current file
	full map[string]bool     // guarded by mu; of those, the ones that wait for room
}

var _ provider.Logs = (*Store)(nil)

// New makes a store over dir, the directory of the pods' directories. It touches
// nothing on disk.
func New(dir string, opts Options) *Store {
	if opts.MaxFileBytes <= 0 {
		opts.MaxFileBytes = 10 << 20
	}
	if opts.MaxFiles == 0 {
		opts.MaxFiles = 5
	}
	// The newest rotated file is what tells a finished rotation from a begun one.
	opts.MaxFiles = max(opts.MaxFiles, 2)
	if opts.SyncInterval <= 0 {
		opts.SyncInterval = time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.fs == nil {
		opts.fs = hostFS{}
	}
	if opts.now == nil {
		opts.now = time.Now
	}
	return &Store{dir: dir, opts: opts, live: map[string]*logFile{}, full: map[string]bool{}}
}

// Exists tells whether there is a log of this attempt, which may be empty.
func (s *Store) Exists(c provider.ContainerRef) bool {
	path, err := s.path(c)
	if err != nil {
		return false
	}
	if _, err := os.Stat(path); err == nil {
		return true
	}
	names, err := rotatedFiles(filepath.Dir(path), filepath.Base(path))
	return err == nil && len(names) > 0
}

// RemoveAttempt deletes the log files of one attempt. Idempotent. No Copy of it may
// be under way.
func (s *Store) RemoveAttempt(c provider.ContainerRef) error {
	path, err := s.path(c)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	names, err := rotatedFiles(dir, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list log files: %w", err)
	}
	pos := strings.TrimSuffix(name, ".log") + ".pos"
	// The position goes last: without it, what a crash leaves would be counted wrong.
	var errs []error
	for _, n := range append(names, name, pos+".tmp", pos) {
		if err := s.opts.fs.Remove(filepath.Join(dir, n)); err != nil {
			errs = append(errs, fmt.Errorf("delete log: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Usage is what the log files of each container of a pod take on disk.
func (s *Store) Usage(uid types.UID) (map[string]provider.LogUsage, error) {
	if !isName(string(uid)) {
		return nil, fmt.Errorf("measure logs of pod: %q is not a pod UID", uid)
	}
	root := filepath.Join(s.dir, string(uid), "logs")
	containers, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("measure logs of pod: %w", err)
	}
	usage := make(map[string]provider.LogUsage, len(containers))
	for _, c := range containers {
		files, err := os.ReadDir(filepath.Join(root, c.Name()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("measure logs of pod: %w", err)
		}
		var sum provider.LogUsage
		for _, f := range files {
			if info, err := f.Info(); err == nil { // else it was rotated away meanwhile
				sum.Bytes, sum.Files = sum.Bytes+info.Size(), sum.Files+1
			}
		}
		usage[c.Name()] = sum
	}
	return usage, nil
}

// RemovePod deletes all log files of a pod. Idempotent. No Copy of the pod may be
// under way.
func (s *Store) RemovePod(uid types.UID) error {
	if !isName(string(uid)) {
		return fmt.Errorf("delete logs of pod: %q is not a pod UID", uid)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, string(uid), "logs")); err != nil {
		return fmt.Errorf("delete logs of pod: %w", err)
	}
	return nil
}

// path is the current log file of an attempt.
func (s *Store) path(c provider.ContainerRef) (string, error) {
	if !isName(string(c.PodUID)) || !isName(c.Container) || c.Attempt < 0 {
		return "", fmt.Errorf("log of container %q, attempt %d, of pod %q: these are no names", c.Container, c.Attempt, c.PodUID)
	}
	return filepath.Join(s.dir, string(c.PodUID), "logs", c.Container, strconv.Itoa(c.Attempt)+".log"), nil
}

// isName tells whether s can be part of a path: UIDs and container names are, but
// they come from the network.
func isName(s string) bool {
	return s != "" && len(s) <= 253 && s != "." && s != ".." && !strings.ContainsAny(s, "/\\\x00")
}

func (s *Store) newLogFile(path string) *logFile {
	return &logFile{
		fs: s.opts.fs, now: s.opts.now, dir: filepath.Dir(path), name: filepath.Base(path),
		maxBytes: s.opts.MaxFileBytes, maxFiles: s.opts.MaxFiles, changed: make(chan struct{}),
	}
}

// begin registers a log that is about to be written.
func (s *Store) begin(path string, l *logFile) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.live[path]; ok {
		return fmt.Errorf("log %q is being written already", path)
	}
	s.live[path] = l
	return nil
}

func (s *Store) finish(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, path)
	delete(s.full, path)
}

// NoRoom is part of provider.Logs.
func (s *Store) NoRoom(c provider.ContainerRef) bool {
	path, err := s.path(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	return err == nil && s.full[path]
}

// interrupted notes what a Copy waits for.
func (s *Store) interrupted(path string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full[path] = errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// liveLog is the log that is being written there, nil when there is none.
func (s *Store) liveLog(path string) *logFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[path]; l != nil && l.isReady() {
		return l
	}
	return nil
}
