// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
)

// footprint is what a process holds that could leak.
type footprint struct {
	descriptors, goroutines, children int
}

func measure(t *testing.T) footprint {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var f footprint
	f.descriptors = len(open)
	f.goroutines = runtime.NumGoroutine()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue // it has ended meanwhile
		}
		for _, c := range text {
			if c == ' ' {
				f.children++
			}
		}
	}
	return f
}

// heap is what the process holds in memory, without what nobody refers to.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // finalizers of the first have run
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestManyMachines makes and deletes 200 machines, restored, dialled and streamed to: the
// node's process has then what it had before. Whatever the framework's binding leaks
// (handles, threads, descriptors; the shims of these leak too) has ended with the shims.
func TestManyMachines(t *testing.T) {
	b := newBench(t)
	dir := b.snapshot(t, b.config, "many")
	life := func(ctx context.Context, id string) error {
		m, err := b.driver.Restore(ctx, id, dir, b.config)
		if err != nil {
			return err
		}
		if err := m.Resume(ctx); err != nil {
			return err
		}
		if _, err := talk(ctx, m, "hello"); err != nil {
			return err
		}
		// One that is left open ends with the machine.
		if _, err := m.DialGuest(ctx, vm.AgentPort); err != nil {
			return err
		}
		return m.Delete(ctx)
	}
	round := func(n int) {
		const atOnce = 4
		errs := make(chan error, atOnce)
		for worker := range atOnce {
			go func() {
				var err error
				for i := worker; i < n && err == nil; i += atOnce {
					err = life(t.Context(), fmt.Sprintf("many%d", i))
				}
				errs <- err
			}()
		}
		var all error
		for range atOnce {
			all = errors.Join(all, <-errs)
		}
		if all != nil {
			t.Fatal(all)
		}
	}
	round(20) // what is made once is made
	heapBefore := heap()
	before := measure(t)
	// Without collections nothing is closed by a finalizer in place of its owner.
	percent := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(percent)
	round(200)
	var after footprint
	// Connections of the last machines are being closed.
	eventually(t, patience, "the process is what it was", func() error {
		after = measure(t)
		if after.descriptors > before.descriptors || after.goroutines > before.goroutines || after.children > before.children {
			return fmt.Errorf("%+v, before %+v", after, before)
		}
		return nil
	})
	// 200 machines of at least a kilobyte each would show.
	grown := int64(heap()) - int64(heapBefore)
	if grown > 128<<10 {
		t.Errorf("the heap has grown by %d bytes over 200 machines", grown)
	}
	t.Logf("before %+v, after %+v, heap grown by %d bytes", before, after, grown)
	b.sweep(t)
}
