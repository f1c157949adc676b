// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// templateSpec is a template of two images whose disks are in dir.
func templateSpec(t *testing.T, dir string) Spec {
	t.Helper()
	spec := testSpec()
	spec.Kind = KindTemplate
	spec.Template = &TemplateSpec{Namespace: "ns", Name: "web", Revision: "r1"}
	for i, name := range []string{"app", "proxy"} {
		path := filepath.Join(dir, name+".ext4")
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i + 1)}, 1<<17), 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Template.Images = append(spec.Template.Images, TemplateImage{Ref: name + ":1", Digest: "sha256:" + strings.Repeat(string(rune('a'+i)), 64), Path: path})
	}
	return spec
}

func TestTemplateBuildAndRestore(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	var mu sync.Mutex
	var events []Event
	opts := testOptions(d)
	opts.OnEvent = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}
	s := openTest(t, dir, opts)
	spec := templateSpec(t, t.TempDir())
	var builder string
	spec.Template.Prepare = func(ctx context.Context, c *guest.Client) error {
		builder = s.Builders()[0]
		if err := c.Ping(ctx); err != nil {
			return err
		}
		if got := d.Machine(builder).Config(); !got.Saveable || !slices.Equal(got.Images, spec.Template.paths()) {
			return fmt.Errorf("the builder is made of %+v", got)
		}
		return nil
	}
	ref, built, err := s.Ensure(t.Context(), spec)
	if err != nil || !built {
		t.Fatalf("ensure: %v, built %v", err, built)
	}
	defer ref.Release()
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
	// The base is a snapshot of its own, and not built again for it.
	baseRef, built := ensure(t, s)
	if built || baseRef.Key() == ref.Key() {
		t.Errorf("base built %v, key %s", built, baseRef.Key())
	}
	if len(events) != 2 || events[0].Kind != KindBase || events[1].Kind != KindTemplate || events[1].Template != "ns/web" || events[1].Type != EventBuilt || events[1].Duration < events[1].Save {
		t.Errorf("events %+v", events)
	}
	if _, built, err := s.Ensure(t.Context(), spec); err != nil || built {
		t.Errorf("second ensure: %v, built %v", err, built)
	}

	cfg := spec.config()
	r, err := s.Restore(t.Context(), ref, "one", cfg, RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Guest.Close()
	// The seal key is not the base's.
	base, err := s.Restore(t.Context(), baseRef, "base", testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = base.Guest.Close()
	if bytes.Equal(d.Machine("one").Agent().Key(), d.Machine("base").Agent().Key()) {
		t.Error("template and base have the same seal key")
	}

	for name, images := range map[string][]string{"too few": cfg.Images[:1], "none": nil} {
		bad := cfg
		bad.Images = images
		if _, err := s.Restore(t.Context(), ref, "two", bad, RestoreOptions{}); !errors.Is(err, vm.ErrInvalidConfig) || errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	found, err := s.FindTemplate(t.Context(), "ns", "web", "r1")
	if err != nil || len(found) != 1 || found[0].Key != ref.Key() || found[0].Template.Images[1].Digest != spec.Template.Images[1].Digest {
		t.Errorf("found %+v, %v", found, err)
	}
	for _, other := range [][3]string{{"ns", "web", "r2"}, {"ns", "other", ""}, {"other", "web", ""}} {
		if found, err := s.FindTemplate(t.Context(), other[0], other[1], other[2]); err != nil || len(found) != 0 {
			t.Errorf("%v: found %+v, %v", other, found, err)
		}
	}
	// A machine keeps its snapshot.
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.RemovedBytes != 0 {
		t.Errorf("collection: %+v, %v", report, err)
	}

	// The image was converted again and came out otherwise.
	if err := os.WriteFile(spec.Template.Images[1].Path, bytes.Repeat([]byte{9}, 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(t.Context(), ref, "two", cfg, RestoreOptions{}); !errors.Is(err, vm.ErrSnapshotInvalid) || !strings.Contains(err.Error(), "proxy:1") {
		t.Errorf("with another disk: %v", err)
	}
	again, built, err := s.Ensure(t.Context(), spec)
	if err != nil || !built {
		t.Fatalf("afterwards: %v, built %v", err, built)
	}
	again.Release()
}

// TestTemplateWithRecipe goes the whole way, with the real protocol: commands are carried
// out, what they wrote is saved, and a machine restored from it can make containers.
func TestTemplateWithRecipe(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	spec := templateSpec(t, t.TempDir())
	rec := recipe.Recipe{Setup: []recipe.Command{{Args: []string{"write", "/a", "b"}}, {Args: []string{"cat", "/a"}}}}
	spec.Template.Prepare = func(ctx context.Context, c *guest.Client) error { return recipe.Run(ctx, c, rec, recipe.Options{}) }
	ref, _, err := s.Ensure(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	r, err := s.Restore(t.Context(), ref, "m", spec.config(), RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Guest.Close() }()
	if err := recipe.Rehearse(t.Context(), r.Guest, recipe.Options{}, true); err != nil {
		t.Error(err)
	}
	rec.Setup[1].Args = []string{"cat", "/missing"}
	spec.Template.Revision = "r2"
	_, _, err = s.Ensure(t.Context(), spec)
	var step *recipe.StepError
	if !errors.As(err, &step) || step.Step != recipe.StepSetup || step.Index != 1 || !strings.Contains(step.Output, "No such file") {
		t.Errorf("%v", err)
	}
	if got := d.Machines(); !slices.Equal(got, []string{"m"}) {
		t.Errorf("machines %v", got)
	}
	if err := r.Machine.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTemplateAfterRestart: what is on disk is found and verified.
func TestTemplateAfterRestart(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	spec := templateSpec(t, t.TempDir())
	ref, _, err := s.Ensure(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	ref.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, testOptions(d))
	if found, err := s.FindTemplate(t.Context(), "ns", "web", ""); err != nil || len(found) != 1 {
		t.Errorf("found %+v, %v", found, err)
	}
	ref, built, err := s.Ensure(t.Context(), spec)
	if err != nil || built {
		t.Fatalf("after restart: %v, built %v", err, built)
	}
	ref.Release()
}

func TestTemplatePrepareFails(t *testing.T) {
	d := snapshottest.New()
	var failed atomic.Pointer[Event]
	opts := testOptions(d)
	opts.OnEvent = func(e Event) {
		if e.Type == EventBuildFailed {
			failed.Store(&e)
		}
	}
	s := openTest(t, t.TempDir(), opts)
	spec := templateSpec(t, t.TempDir())
	step := &recipe.StepError{Step: recipe.StepSetup, Message: "it ended with exit code 1", Output: "no such file", Err: errors.New("x")}
	spec.Template.Prepare = func(context.Context, *guest.Client) error { return step }
	_, _, err := s.Ensure(t.Context(), spec)
	var build *BuildError
	if !errors.As(err, &build) || build.Step != "prepare" || build.Template != "ns/web" || build.Console != "" || !errors.Is(err, step) {
		t.Fatalf("%v", err)
	}
	for _, part := range []string{"template ns/web", "Setup: it ended with exit code 1", "no such file"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	if e := failed.Load(); e == nil || e.Template != "ns/web" || !errors.Is(e.Err, step) {
		t.Errorf("event %+v", e)
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
	if got := s.Builders(); len(got) != 0 {
		t.Errorf("builders are left: %v", got)
	}
}

// TestTemplateMachineDies: the work in it ends at once, and says why.
func TestTemplateMachineDies(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	spec := templateSpec(t, t.TempDir())
	spec.Template.Prepare = func(ctx context.Context, _ *guest.Client) error {
		d.Machine(s.Builders()[0]).Exit()
		<-ctx.Done()
		return context.Cause(ctx)
	}
	_, _, err := s.Ensure(t.Context(), spec)
	var build *BuildError
	if !errors.As(err, &build) || !errors.Is(err, vm.ErrInvalidState) || !strings.Contains(err.Error(), "the machine ended") || build.Console == "" {
		t.Errorf("%v", err)
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
}

// TestTemplateCloseEndsBuild: a store does not wait for a template's commands.
func TestTemplateCloseEndsBuild(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	spec := templateSpec(t, t.TempDir())
	begun := make(chan struct{})
	spec.Template.Prepare = func(ctx context.Context, _ *guest.Client) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	done := make(chan error)
	go func() {
		_, _, err := s.Ensure(context.Background(), spec)
		done <- err
	}()
	<-begun
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
}

// TestTemplateNobodyWaitsFor: the build goes on while one caller waits, and is cut short
// with the last; the next caller gets a build of its own.
func TestTemplateNobodyWaitsFor(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	spec := templateSpec(t, t.TempDir())
	begun, ended := make(chan struct{}, 2), make(chan error, 2)
	spec.Template.Prepare = func(ctx context.Context, _ *guest.Client) error {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	var waiting sync.WaitGroup
	wait := func() context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		waiting.Go(func() { _, _, _ = s.Ensure(ctx, spec) })
		return cancel
	}
	first := wait()
	<-begun
	second := wait()
	for s.waiters(Key(spec, s.features)) != 2 {
		runtime.Gosched()
	}
	first()
	for s.waiters(Key(spec, s.features)) != 1 {
		runtime.Gosched()
	}
	select {
	case err := <-ended:
		t.Fatalf("the build ended (%v) while somebody waited", err)
	default:
	}
	second()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the build ended with %v", err)
	}
	waiting.Wait()
	// At once, while the former may still clean up.
	spec.Template.Prepare = nil
	if ref, built, err := s.Ensure(t.Context(), spec); err != nil || !built {
		t.Errorf("built %v, %v", built, err)
	} else {
		ref.Release()
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
}

// waiters is how many calls wait for the build of a key.
func (s *Store) waiters(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[key]; f != nil {
		return f.waiters
	}
	return 0
}

// TestTemplateFaultAtEveryCall fails each call of the driver and of the file system in
// the build of a template, base included: once, or for good, as when the process dies there.
// What is left is a whole snapshot or none, and no machine that nobody will delete.
func TestTemplateFaultAtEveryCall(t *testing.T) {
	for name, forGood := range map[string]bool{"once": false, "for good": true} {
		t.Run(name, func(t *testing.T) { templateFaultAtEveryCall(t, forGood) })
	}
}

func templateFaultAtEveryCall(t *testing.T, forGood bool) {
	for n := 1; ; n++ {
		d := snapshottest.New()
		dir := t.TempDir()
		calls, restarted := 0, false
		var mu sync.Mutex
		next := func(op string) error {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if calls == n || forGood && calls > n && !restarted {
				return fmt.Errorf("call %d, %s: %w", n, op, errInjected)
			}
			return nil
		}
		d.SetFault(func(op, id string) error {
			if op == "" || op == "list" {
				return nil
			}
			return next(op)
		})
		opts := testOptions(d)
		// A dial that fails is tried again: that is no fault of a build.
		s := openTest(t, dir, opts)
		s.opts.FS = &countedFS{durable.Host, next}
		spec := templateSpec(t, t.TempDir())
		spec.Template.Prepare = func(ctx context.Context, c *guest.Client) error {
			return errors.Join(next("prepare"), c.Ping(ctx))
		}
		ref, _, err := s.Ensure(t.Context(), spec)
		reached := calls >= n
		switch {
		case err == nil:
			ref.Release()
		case !reached:
			t.Fatalf("call %d: failed without a fault: %v", n, err)
		}
		d.SetFault(nil)
		mu.Lock()
		restarted = true
		mu.Unlock()
		opts.FS = durable.Host
		s.opts.FS = durable.Host
		if got := s.Builders(); len(got) != 0 && !forGood { // else the next process has to find them
			t.Errorf("call %d: builders are left: %v", n, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openTest(t, dir, opts)
		if got := d.Machines(); len(got) != 0 {
			t.Errorf("call %d (%v): machines are left after reopen: %v", n, err, got)
		}
		for _, name := range visible(t, dir) {
			if !isHex(name, keyLength) {
				t.Errorf("call %d: %s is left after reopen", n, name)
			}
			if _, err := s.Verify(t.Context(), name); err != nil {
				t.Errorf("call %d: %v", n, err)
			}
		}
		ref, _, err = s.Ensure(t.Context(), spec)
		if err != nil {
			t.Fatalf("call %d: ensure afterwards: %v", n, err)
		}
		r, err := s.Restore(t.Context(), ref, "m", spec.config(), RestoreOptions{})
		if err != nil {
			t.Fatalf("call %d: restore afterwards: %v", n, err)
		}
		_ = r.Guest.Close()
		ref.Release()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !reached {
			if n < 25 {
				t.Errorf("only %d calls were made to fail", n-1)
			}
			return
		}
	}
}

// countedFS asks before each change.
type countedFS struct {
	durable.FS
	next func(op string) error
}

func (f *countedFS) OpenFile(path string, flag int) (durable.File, error) {
	if flag&os.O_CREATE != 0 {
		if err := f.next("create"); err != nil {
			return nil, err
		}
	}
	return f.FS.OpenFile(path, flag)
}

func (f *countedFS) Mkdir(path string) error {
	return errOr(f.next("mkdir"), func() error { return f.FS.Mkdir(path) })
}

func (f *countedFS) SyncDir(path string) error {
	return errOr(f.next("sync"), func() error { return f.FS.SyncDir(path) })
}

func (f *countedFS) Rename(from, to string) error {
	return errOr(f.next("rename"), func() error { return f.FS.Rename(from, to) })
}

func (f *countedFS) RemoveAll(path string) error {
	return errOr(f.next("remove"), func() error { return f.FS.RemoveAll(path) })
}

func errOr(err error, do func() error) error {
	if err != nil {
		return err
	}
	return do()
}

func TestTemplateSpecRefusals(t *testing.T) {
	dir := t.TempDir()
	f := testFeatures()
	if err := templateSpec(t, dir).Validate(f); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"no template":    func(s *Spec) { s.Template = nil },
		"base with one":  func(s *Spec) { s.Kind = KindBase },
		"no name":        func(s *Spec) { s.Template.Name = "" },
		"no revision":    func(s *Spec) { s.Template.Revision = "" },
		"control":        func(s *Spec) { s.Template.Revision = "a\n" },
		"no images":      func(s *Spec) { s.Template.Images = nil },
		"no digest":      func(s *Spec) { s.Template.Images[0].Digest = "" },
		"relative disk":  func(s *Spec) { s.Template.Images[0].Path = "a" },
		"too many slots": func(s *Spec) { s.Template.Images = slices.Repeat(s.Template.Images, 5) },
	} {
		s := templateSpec(t, dir)
		change(&s)
		if err := s.Validate(f); !errors.Is(err, vm.ErrInvalidConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTemplateKey(t *testing.T) {
	dir := t.TempDir()
	base := templateSpec(t, dir)
	seen := map[string]string{Key(base, testFeatures()): "nothing", Key(testSpec(), testFeatures()): "base"}
	for name, change := range map[string]func(*Spec){
		"namespace": func(s *Spec) { s.Template.Namespace = "x" },
		"name":      func(s *Spec) { s.Template.Name = "x" },
		"revision":  func(s *Spec) { s.Template.Revision = "x" },
		"digest":    func(s *Spec) { s.Template.Images[0].Digest = "x" },
		"order":     func(s *Spec) { slices.Reverse(s.Template.Images) },
		"fewer":     func(s *Spec) { s.Template.Images = s.Template.Images[:1] },
		"shape":     func(s *Spec) { s.Shape.VCPUs++ },
	} {
		s := templateSpec(t, dir)
		change(&s)
		key := Key(s, testFeatures())
		if other, taken := seen[key]; taken {
			t.Errorf("%s changes the key no more than %s", name, other)
		}
		seen[key] = name
	}
	same := templateSpec(t, t.TempDir())
	same.Template.Images[0].Ref = "other/name:2" // what counts is what it meant
	if Key(same, testFeatures()) != Key(base, testFeatures()) {
		t.Error("the key depends on a path or a tag")
	}
}

// TestTemplateDiskPressure: what is to be written must be there on top of the floor.
func TestTemplateDiskPressure(t *testing.T) {
	d := snapshottest.New()
	opts := testOptions(d)
	opts.MinFreeBytes = 1 << 30
	free := int64(1 << 30)
	opts.FreeBytes = func(string) (int64, error) { return free, nil }
	s := openTest(t, t.TempDir(), opts)
	spec := templateSpec(t, t.TempDir())
	_, _, err := s.Ensure(t.Context(), spec)
	var pressure *DiskPressureError
	if !errors.As(err, &pressure) || !errors.Is(err, vm.ErrNoSpace) || pressure.Floor != 1<<30+spec.Shape.MemoryBytes {
		t.Errorf("%v", err)
	}
	free += spec.Shape.MemoryBytes
	ref, _, err := s.Ensure(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	ref.Release()
}
