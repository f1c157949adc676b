// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/native"
)

// Defaults of Options.
const (
	// DefaultScratchDir is on the machine's one disk.
	DefaultScratchDir = "/var/db/firkin"
	// DefaultInterface is the first network device of a Mac.
	DefaultInterface = "en0"
	// DefaultPowerOffPatience is how long a Mac may take to shut down.
	DefaultPowerOffPatience = 2 * time.Minute
)

// Runner runs a command to its end and returns what it printed. The error of one that
// failed has what it printed on standard error.
type Runner func(ctx context.Context, stdin, name string, args ...string) (string, error)

// Kernel is what is asked of the kernel itself.
type Kernel interface {
	// SetClock steps the wall clock.
	SetClock(t time.Time) error
	Hostname() (string, error)
	// Release is the version of Darwin.
	Release() (string, error)
	// BootSession tells this boot from all others.
	BootSession() (string, error)
	MemoryBytes() (int64, error)
	// DiskUsage measures the file system of a directory.
	DiskUsage(dir string) (total, used int64, err error)
	// Sync flushes the disks.
	Sync() error
}

// Options of a system. Run and Kernel are required.
type Options struct {
	Run    Runner
	Kernel Kernel
	// ScratchDir is where the agent keeps what it has. Empty: DefaultScratchDir.
	ScratchDir string
	// Interface is the machine's network device. Empty: DefaultInterface.
	Interface string
	// EntropyFile and HostsFile are for tests. Empty: those of macOS.
	EntropyFile, HostsFile string
	// PowerOffPatience is how long PowerOff waits for the end. Zero: DefaultPowerOffPatience.
	PowerOffPatience time.Duration
	// Logger gets what has no caller to be returned to. nil discards.
	Logger *slog.Logger
}

// System is the machine.
type System struct {
	opts Options

	mu     sync.Mutex // one change of the machine at a time
	pod    *agent.Pod // guarded by mu: what the machine is set up for
	dns    resolver   // guarded by mu: of the network, without the pod's
	marked bool       // guarded by mu: the mark of this boot is there

	measuring sync.Mutex
	meter     native.Meter // guarded by measuring
}

var (
	_ agent.System    = (*System)(nil)
	_ native.Platform = (*System)(nil)
)

// New makes a system and removes what an agent before this one left in the scratch
// directory: output and volumes of containers that nobody knows any more. Named layers are
// kept, since what was written to them is on the machine's disk.
func New(ctx context.Context, o Options) (*System, error) {
	if o.Run == nil || o.Kernel == nil {
		return nil, errors.New("darwin: Run and Kernel are required")
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.ScratchDir, DefaultScratchDir}, {&o.Interface, DefaultInterface},
		{&o.EntropyFile, "/dev/random"}, {&o.HostsFile, "/etc/hosts"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.PowerOffPatience == 0 {
		o.PowerOffPatience = DefaultPowerOffPatience
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &System{opts: o}
	if err := s.clearScratch(ctx); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", o.ScratchDir, err)
	}
	return s, nil
}

func (s *System) clearScratch(ctx context.Context) error {
	if err := os.MkdirAll(s.opts.ScratchDir, 0o711); err != nil {
		return err
	}
	volumes := filepath.Join(s.opts.ScratchDir, "volumes")
	left, err := os.ReadDir(volumes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, v := range left {
		// It may have been in memory; what is not mounted is no error.
		if err := s.unmount(ctx, filepath.Join(volumes, v.Name())); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(volumes), os.RemoveAll(filepath.Join(s.opts.ScratchDir, "output")))
}

// The first container leaves a mark of this boot, since nothing else tells an agent that
// starts that another one before it had containers: their processes go on without anybody
// who knows them. On Linux the end of the agent is the end of the machine.
func (s *System) markFile() string { return filepath.Join(s.opts.ScratchDir, "boot-with-containers") }

// Orphaned reports whether an agent before this one died in this boot and had containers.
// Such a machine is to be powered off.
func (s *System) Orphaned() (bool, error) {
	mark, err := os.ReadFile(s.markFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	boot, err := s.opts.Kernel.BootSession()
	if err != nil {
		return false, fmt.Errorf("identify this boot: %w", err)
	}
	return string(mark) == boot, nil
}

// Settled says that no container is left: the agent ends in order.
func (s *System) Settled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marked = false
	if err := os.Remove(s.markFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mark leaves the mark. mu is held.
func (s *System) mark() error {
	if s.marked {
		return nil
	}
	boot, err := s.opts.Kernel.BootSession()
	if err != nil {
		return fmt.Errorf("identify this boot: %w", err)
	}
	if err := replaceFile(s.markFile(), boot); err != nil {
		return err
	}
	s.marked = true
	return nil
}

// Refresh implements agent.System, like the methods below.
func (s *System) Refresh(ctx context.Context, r agent.Refresh) error {
	// Refused before anything is changed.
	n, err := parseNetwork(r.Network)
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	if err := checkHostname(r.Hostname); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pod = nil // whatever it set is overwritten
	for _, step := range []struct {
		doing string
		do    func() error
	}{
		{"set clock", func() error { return s.opts.Kernel.SetClock(r.Time) }},
		{"add entropy", func() error { return s.addEntropy(r.Entropy) }},
		{"set machine id", func() error { return replaceFile(s.machineIDFile(), r.MachineID+"\n") }},
		{"set hostname", func() error { return s.setHostname(ctx, r.Hostname) }},
		{"set network", func() error { return s.setNetwork(ctx, n) }},
	} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("refresh: %s: %w", step.doing, err)
		}
	}
	return nil
}

// Now is the Mac's own clock, which its timed(8) may set as well.
func (s *System) Now() time.Time { return time.Now() }

// SetClock implements agent.System.
func (s *System) SetClock(t time.Time) error { return s.opts.Kernel.SetClock(t) }

// addEntropy mixes b into the kernel's generator, which is what writing to random(4) does
// for the superuser. There is no way to see that it did.
func (s *System) addEntropy(b []byte) error {
	f, err := os.OpenFile(s.opts.EntropyFile, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func (s *System) machineIDFile() string { return filepath.Join(s.opts.ScratchDir, "machine-id") }

// replaceFile writes a file so that a reader sees the old content or the new.
func replaceFile(path, content string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Identity has the machine id of the last refresh: a Mac's own cannot be changed, see the
// package comment.
func (s *System) Identity() (agent.Identity, error) {
	id, err := os.ReadFile(s.machineIDFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return agent.Identity{}, fmt.Errorf("identity: %w", err)
	}
	hostname, err := s.opts.Kernel.Hostname()
	if err != nil {
		return agent.Identity{}, fmt.Errorf("identity: %w", err)
	}
	release, err := s.opts.Kernel.Release()
	if err != nil {
		return agent.Identity{}, fmt.Errorf("identity: %w", err)
	}
	return agent.Identity{MachineID: strings.TrimSpace(string(id)), Hostname: hostname, KernelRelease: release}, nil
}

// MountImage knows one image, the machine's own system, which needs no mount.
func (s *System) MountImage(_ context.Context, slot int) (string, error) {
	if slot != 0 {
		return "", fmt.Errorf("a macOS machine has no image slot %d: its one image, in slot 0, is its own system", slot)
	}
	return "/", nil
}

// ScratchDir is on the machine's own disk: it is empty at the first boot of an image.
func (s *System) ScratchDir() string { return s.opts.ScratchDir }

// Quiesce flushes the disk. Clean caches are dropped as well as purge(8) can; a save is
// larger without that, and no worse.
func (s *System) Quiesce(ctx context.Context, keepCaches bool) error {
	if err := s.opts.Kernel.Sync(); err != nil {
		return fmt.Errorf("quiesce: %w", err)
	}
	debug.FreeOSMemory()
	if keepCaches {
		return nil
	}
	if _, err := s.opts.Run(ctx, "", "/usr/sbin/purge"); err != nil {
		s.opts.Logger.Warn("Dropping caches failed", "error", err)
	}
	return nil
}

// PowerOff shuts macOS down in order.
func (s *System) PowerOff() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.PowerOffPatience)
	defer cancel()
	if _, err := s.opts.Run(ctx, "", "/sbin/shutdown", "-h", "now"); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	<-ctx.Done() // the end of the machine comes first
	return fmt.Errorf("power off: the machine still runs after %s", s.opts.PowerOffPatience)
}

// Stats counts as processor time what ps(1) shows: of a process that came and went between
// two looks it knows nothing.
func (s *System) Stats() (agent.SystemStats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statsTimeout)
	defer cancel()
	var out agent.SystemStats
	var err error
	if out.MemoryTotalBytes, err = s.opts.Kernel.MemoryBytes(); err != nil {
		return out, fmt.Errorf("stats: memory: %w", err)
	}
	text, err := s.opts.Run(ctx, "", "/usr/bin/vm_stat")
	if err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	if out.MemoryAvailableBytes, err = parseVMStat(text); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	out.MemoryWorkingSetBytes = max(out.MemoryTotalBytes-out.MemoryAvailableBytes, 0)
	if text, err = s.opts.Run(ctx, "", "/bin/ps", "-A", "-o", "pid=,rss=,time="); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	used, err := native.ParseUsage(text)
	if err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	s.measuring.Lock()
	out.CPUTime = s.meter.Add(used)
	s.measuring.Unlock()
	if out.ScratchTotalBytes, out.ScratchUsedBytes, err = s.opts.Kernel.DiskUsage(s.opts.ScratchDir); err != nil {
		return out, fmt.Errorf("stats: disk: %w", err)
	}
	return out, nil
}

// statsTimeout is for the commands of one measurement.
const statsTimeout = 10 * time.Second

// MountTmpfs implements native.Platform. mount_tmpfs(8) is there since macOS 11; -e makes
// it case-sensitive, as the keys of a Secret are.
func (s *System) MountTmpfs(dir string, sizeBytes int64) error {
	args := []string{"-e"}
	if sizeBytes > 0 {
		args = append(args, "-s", fmt.Sprint(sizeBytes))
	}
	ctx, cancel := context.WithTimeout(context.Background(), mountTimeout)
	defer cancel()
	if _, err := s.opts.Run(ctx, "", "/sbin/mount_tmpfs", append(args, dir)...); err != nil {
		return fmt.Errorf("mount memory on %s: %w", dir, err)
	}
	return nil
}

const mountTimeout = 30 * time.Second

// Unmount implements native.Platform.
func (s *System) Unmount(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), mountTimeout)
	defer cancel()
	return s.unmount(ctx, dir)
}

// unmount unmounts dir, by force when something still uses it.
func (s *System) unmount(ctx context.Context, dir string) error {
	var err error
	for _, args := range [][]string{{dir}, {"-f", dir}} {
		if _, err = s.opts.Run(ctx, "", "/sbin/umount", args...); err == nil || strings.Contains(err.Error(), "not currently mounted") {
			return nil
		}
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}
