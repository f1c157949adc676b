// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// stopped is a machine whose process was stopped.
type stopped struct {
	pid   int
	since time.Time
	left  bool
}

// damaged is an instance of a snapshot of which a file was damaged.
type damaged struct {
	key string
	// machines are those that had been restored from it before.
	machines []string
}

// choose is one of the machines there are: of a pod, of a pool, or one that is being made.
func (w *world) choose(k Kind, pick uint32) (id string, pid int) {
	machines := w.node.Machines()
	maps.DeleteFunc(machines, func(id string, _ int) bool { _, is := w.stopped[id]; return is && k != KillMachine })
	if len(machines) == 0 {
		w.nothing(k, fmt.Sprintf("there is no machine, of %d processes", len(w.node.MachinePIDs())))
		return "", 0
	}
	ids := slices.Sorted(maps.Keys(machines))
	id = ids[int(pick)%len(ids)]
	return id, machines[id]
}

// harm does to a machine what costs it its pod.
func (w *world) harm(id, how string, do func()) {
	w.killed[id] = true
	w.blame(id)
	w.bereave()
	do()
	w.bereave() // it may have been given to a pod meanwhile
	w.note("   %s %s", how, id)
}

// blame remembers which snapshot a machine is being restored from: to fail at that may cost the
// snapshot the node's trust. A machine that builds one may be restored from any base.
func (w *world) blame(id string) {
	refs, _ := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", ".refs", "*", id))
	if len(refs) == 0 {
		w.blamed[anyBase]++
		return
	}
	var ref struct {
		Proven bool `json:"proven"`
	}
	data, _ := os.ReadFile(refs[0])
	if err := json.Unmarshal(data, &ref); err != nil || !ref.Proven {
		w.blamed[filepath.Base(filepath.Dir(refs[0]))]++
	}
}

// bereave remembers which pods have a machine that was harmed. It reads the node's records as
// text, which holds whatever their format.
func (w *world) bereave() {
	pods, _ := os.ReadDir(filepath.Join(w.node.StateDir, "pods"))
	for _, p := range pods {
		uid := p.Name()
		if w.bereaved[uid] {
			continue
		}
		content, _ := os.ReadFile(filepath.Join(w.node.StateDir, "pods", uid, "pod.json"))
		for id := range w.killed {
			warm, _ := os.ReadFile(filepath.Join(w.node.StateDir, "warm", id+".json"))
			if bytes.Contains(content, []byte(id)) || bytes.Contains(warm, []byte(uid)) {
				w.bereaved[uid] = true
			}
		}
	}
}

func (w *world) killMachine(pick uint32) {
	if id, pid := w.choose(KillMachine, pick); id != "" {
		w.harm(id, "killed", func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	}
}

// killBuild kills the machine that a template is built in, as soon as there is one.
func (w *world) killBuild(t *testing.T) {
	for began := time.Now(); time.Since(began) < buildTime; w.pause(t, 50*time.Millisecond) {
		for id, pid := range w.node.Machines() {
			if strings.HasPrefix(id, "build-") {
				w.harm(id, "killed", func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
				return
			}
		}
	}
	w.nothing(KillBuild, "nothing was built")
}

func (w *world) stopMachine(pick uint32, left bool) {
	id, pid := w.choose(StopMachine, pick)
	if id == "" {
		return
	}
	stop := func() { _ = syscall.Kill(pid, syscall.SIGSTOP) }
	w.stopped[id] = stopped{pid, time.Now(), left}
	if left {
		w.harm(id, "stopped for good", stop)
		return
	}
	w.blame(id)
	stop()
	w.note("   stopped %s", id)
}

// continueMachines lets those go on that were not left. One that has stood still for long may
// have been found stuck.
func (w *world) continueMachines() {
	now := w.node.Machines()
	for id, s := range w.stopped {
		if s.left {
			continue
		}
		delete(w.stopped, id)
		if now[id] != s.pid {
			w.note("   %s is gone", id)
			continue
		}
		goOn := func() { _ = syscall.Kill(s.pid, syscall.SIGCONT) }
		if time.Since(s.since) > stuckTime/2 {
			w.harm(id, "continued, late,", goOn)
			continue
		}
		goOn()
		w.note("   continued %s after %v", id, time.Since(s.since).Round(time.Millisecond))
	}
}

// silenceAgent takes the one connection that a machine's agent has, for as long as the machine
// lives. The hypervisor goes on to answer.
func (w *world) silenceAgent(pick uint32) {
	id, _ := w.choose(SilenceAgent, pick)
	if id == "" {
		return
	}
	conn, err := net.DialTimeout("unix", filepath.Join(w.node.StateDir, "machines", id, "agent.sock"), 5*time.Second)
	if err != nil {
		w.nothing(SilenceAgent, err.Error())
		return
	}
	w.harm(id, "silenced", func() { w.silenced = append(w.silenced, conn) })
}

func (w *world) killNode() {
	w.nodeUp, w.nodeStopped = false, false
	w.node.Kill()
}

func (w *world) killController() {
	w.controllerUp = false
	w.controller.Kill()
}

func (w *world) killAPI() {
	w.apiUp = false
	w.plane.Kill()
}

// restartAll kills all that runs, and starts it in an order that nobody would choose.
func (w *world) restartAll(ctx context.Context, order []Kind) error {
	for _, part := range []struct {
		up   bool
		kill func()
	}{{w.nodeUp, w.killNode}, {w.controllerUp, w.killController}, {w.apiUp, w.killAPI}} {
		if part.up {
			part.kill()
		}
	}
	var errs []error
	for _, kind := range order {
		switch kind {
		case StartAPI:
			errs = append(errs, w.startAPI(ctx))
		case StartNode:
			w.nodeUp = true
			errs = append(errs, w.node.Launch())
		case StartController: // which may end when it finds no server; watch starts it again
			w.controllerUp = true
			errs = append(errs, w.controller.Launch())
		default:
			errs = append(errs, fmt.Errorf("%s starts nothing", kind))
		}
	}
	return errors.Join(errs...)
}

// filled tells whether the disk is full now.
func (w *world) filled() bool { return len(w.full) > 0 && w.full[len(w.full)-1].until.IsZero() }

func (w *world) filler() string { return filepath.Join(w.disk.Path, "filler") }

// fill takes what the disk has left, also what came free since.
func (w *world) fill() error { return cluster.FillDisk(w.filler()) }

func (w *world) makeRoom() error {
	w.full[len(w.full)-1].until = time.Now()
	return os.Remove(w.filler())
}

// damageSnapshot damages a file of a snapshot: the end is missing, or a bit is another one. The
// file is replaced, for a machine that runs has mapped the one that there was.
func (w *world) damageSnapshot(ctx context.Context, pick uint32) error {
	manifests, _ := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", "*", "manifest.json"))
	type set struct {
		Key      string `json:"key"`
		Instance string `json:"instance"`
		Members  []struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		} `json:"members"`
		dir string
	}
	var sets []set
	for _, path := range manifests {
		data, err := os.ReadFile(path)
		s := set{dir: filepath.Dir(path)}
		if err = errors.Join(err, json.Unmarshal(data, &s)); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if _, is := w.damaged[s.Instance]; !is && len(s.Members) > 0 {
			sets = append(sets, s)
		}
	}
	if len(sets) == 0 {
		w.nothing(DamageSnapshot, "there is no snapshot that is whole")
		return nil
	}
	s := sets[int(pick)%len(sets)]
	member := s.Members[int(pick>>8)%len(s.Members)]
	path, copied := filepath.Join(s.dir, filepath.FromSlash(member.Name)), filepath.Join(w.disk.Path, "damaged")
	defer os.Remove(copied)
	out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--preserve=mode", path, copied).CombinedOutput()
	if err == nil {
		err = damage(copied, member.Size, pick)
	}
	if err != nil { // the disk is full
		w.nothing(DamageSnapshot, fmt.Sprintf("%v: %s", err, out))
		return nil
	}
	refs, _ := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", ".refs", s.Key, "*"))
	w.damaged[s.Instance] = damaged{s.Key, refs}
	w.note("   damaged %s of snapshot %.12s, instance %s", member.Name, s.Key, s.Instance)
	return os.Rename(copied, path)
}

// damage makes a file another one.
func damage(path string, size int64, pick uint32) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if pick%3 == 0 {
		return os.Truncate(path, size/2)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, at := make([]byte, 1), int64(pick)%size
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	return err
}

// collectGarbage runs gc, as a person may at any time. Who cannot be asked now is no fault of
// it, nor is a disk without a byte.
func (w *world) collectGarbage(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, w.binary, "gc", "--grace", "0s", "--state-dir", w.node.StateDir, "--cache-dir", w.node.CacheDir).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	w.note("   gc: %s", lines[len(lines)-1])
	if err == nil || w.filled() || ctx.Err() != nil || strings.Contains(string(out), "does not answer") {
		return nil
	}
	return fmt.Errorf("%w: %s", err, out)
}
