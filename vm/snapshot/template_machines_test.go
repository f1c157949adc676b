// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// rig is a real driver, a store and a busybox.
type rig struct {
	t      *testing.T
	state  string
	driver vm.Driver
	store  *snapshot.Store
	kit    vm.Kit
	image  *image.Image
	events []snapshot.Event // of one build at a time
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := os.Getenv("FIRKIN_KIT_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin", "guest")
	}
	k, err := kit.Load(filepath.Join(dir, "amd64"))
	if err != nil {
		t.Fatalf("%v (make guest builds it)", err)
	}
	r := &rig{t: t, kit: k}
	// Socket paths are short, t.TempDir's are not.
	if r.state, err = os.MkdirTemp("", "fk"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(r.state) })
	if r.driver, err = qemu.Open(t.Context(), qemu.Options{StateDir: r.state, Arch: "amd64", Accelerator: "tcg", Kit: k}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, id := range r.machines() {
			if m, err := r.driver.Load(context.Background(), id); err == nil {
				_ = m.Delete(context.Background())
			}
		}
		_ = r.driver.Close()
	})
	r.image = r.busybox("images")
	r.store, err = snapshot.Open(t.Context(), filepath.Join(r.state, "snapshots"), snapshot.Options{
		Driver: r.driver, MinFreeBytes: 1 << 30, OnEvent: func(e snapshot.Event) { r.events = append(r.events, e) },
		Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.store.Close() })
	return r
}

func (r *rig) machines() []string {
	r.t.Helper()
	ids, err := r.driver.List(context.Background())
	if err != nil {
		r.t.Error(err)
	}
	return ids
}

// busybox converts a busybox image as the node does.
func (r *rig) busybox(cache string) *image.Image {
	r.t.Helper()
	busybox, err := images.Busybox(r.t.Context(), r.t.TempDir())
	if err != nil {
		r.t.Fatal(err)
	}
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = registry.Close() }()
	if _, err := registry.Push("busybox:1", busybox); err != nil {
		r.t.Fatal(err)
	}
	store, err := image.Open(filepath.Join(r.state, cache), image.Options{SlotBytes: r.driver.Features().SlotBytes, InsecureRegistries: []string{registry.Addr()}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = store.Close() })
	img, err := store.Pull(r.t.Context(), registry.Addr()+"/busybox:1", image.PullOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(img.Release)
	return img
}

func (r *rig) options() recipe.Options {
	c := r.image.Config
	return recipe.Options{Image: recipe.Image{Env: c.Env, User: c.User, WorkingDir: c.WorkingDir}, Nameservers: []string{"10.0.2.3"}}
}

func (r *rig) spec(name string, rec recipe.Recipe) snapshot.Spec {
	return snapshot.Spec{
		Kind: snapshot.KindTemplate, Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Kit: r.kit,
		Template: &snapshot.TemplateSpec{
			Namespace: "default", Name: name, Revision: rec.Digest(),
			Images: []snapshot.TemplateImage{{Ref: r.image.Ref, Digest: r.image.Digest, Path: r.image.DiskPath}},
			Prepare: func(ctx context.Context, c *guest.Client) error {
				return recipe.Run(ctx, c, rec, r.options())
			},
		},
	}
}

func (r *rig) config() vm.Config {
	return vm.Config{Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Kit: r.kit, Images: []string{r.image.DiskPath}}
}

func sh(script string) recipe.Command { return recipe.Command{Args: []string{"sh", "-c", script}} }

// pod runs a container of a pod and returns its output.
func pod(t *testing.T, c *guest.Client, layers []string, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "the-pod", Hosts: []byte("127.0.0.1 localhost\n")})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Containers.CreateContainer(ctx, connect.NewRequest(&agentv1.CreateContainerRequest{
		Id: "main", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin", "FROM=pod"}, LowerLayers: layers,
		User: &agentv1.User{ImageUser: "worker"},
	})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: "main"})); err != nil {
		t.Fatal(err)
	}
	s, err := c.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: "main", Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var out bytes.Buffer
	for s.Receive() {
		for _, rec := range s.Msg().GetRecords() {
			out.Write(rec.GetData())
			out.WriteByte('\n')
		}
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
	return out.String()
}

// serverRecipe writes files, warms caches and starts a server.
func serverRecipe() recipe.Recipe {
	return recipe.Recipe{
		Env: []string{"WHO=template"},
		Setup: []recipe.Command{
			sh("mkdir -p /srv/www && echo hello from $WHO > /srv/www/index.html && chmod 666 /srv/www/index.html && rm /etc/os-release"),
			sh("echo worker:x:1001:1001::/:/bin/sh >> /etc/passwd && rm -rf /var && mkdir /var && echo new > /var/new"),
		},
		WarmCache: []recipe.Command{sh("cat /bin/busybox > /dev/null")},
		Start:     &recipe.Command{Args: []string{"sh", "-c", "echo starting; echo mine > /run-of-start; exec httpd -f -v -p 8080 -h /srv/www"}},
		Readiness: &recipe.Readiness{HTTP: &recipe.HTTP{Port: 8080, Path: "/index.html"}},
	}
}

// TestTemplateMachines builds a template in a real machine, restores machines from it,
// and runs pods in them.
func TestTemplateMachines(t *testing.T) {
	r := newRig(t)
	spec := r.spec("server", serverRecipe())
	start := time.Now()
	ref, built, err := r.store.Ensure(t.Context(), spec)
	if err != nil || !built {
		t.Fatalf("build: %v, built %v", err, built)
	}
	defer ref.Release()
	last := r.events[len(r.events)-1]
	t.Logf("base and template built in %s; template %s, of that save %s", time.Since(start).Round(time.Millisecond), last.Duration.Round(time.Millisecond), last.Save.Round(time.Millisecond))
	if last.Type != snapshot.EventBuilt || last.Kind != snapshot.KindTemplate || last.Template != "default/server" || last.Save <= 0 || last.Save > last.Duration {
		t.Errorf("event %+v", last)
	}
	if got := r.machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
	const script = `cat /srv/www/index.html /var/new; ls /etc/os-release /run-of-start /var 2>&1; id -u; echo $FROM$WHO; hostname; wget -q -O - http://127.0.0.1:8080/; echo x > /srv/www/index.html; wget -q -O - http://127.0.0.1:8080/`
	want := strings.Join([]string{
		"hello from template", "new", "ls: /etc/os-release: No such file or directory", "ls: /run-of-start: No such file or directory",
		"/var:", "new", "1001", "pod", "the-pod", "hello from template", "hello from template", "",
	}, "\n")
	random := map[string]bool{}
	for _, id := range []string{"one", "two"} {
		running, err := r.store.Restore(t.Context(), ref, id, r.config(), snapshot.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("restored %s: driver %s, agent %s", id, running.Timings.Restore.Round(time.Millisecond), running.Timings.Agent.Round(time.Millisecond))
		before := time.Now()
		if err := recipe.Rehearse(t.Context(), running.Guest, r.options(), true); err != nil {
			t.Fatal(err)
		}
		rehearsed := time.Now()
		_ = running.Guest.Close()
		if err := running.Machine.(vm.Pauser).Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond) // its clock stands
		checkout := time.Now()
		client, err := r.store.Wake(t.Context(), running.Machine, nil, "host-"+id)
		if err != nil {
			t.Fatal(err)
		}
		woken := time.Now()
		info, err := client.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Since(time.Unix(0, info.Msg.GetTimeUnixNano())).Abs(); off > time.Second || info.Msg.GetHostname() != "host-"+id {
			t.Errorf("%s: after it was woken its clock is off by %s: %v", id, off, info.Msg)
		}
		random[string(info.Msg.GetRandom())+info.Msg.GetMachineId()] = true
		podStart := time.Now()
		if got := pod(t, client, []string{recipe.Layer}, script); got != want {
			t.Errorf("%s: output\n%s\nwant\n%s", id, got, want)
		}
		_ = client.Close()
		t.Logf("%s: rehearsal %s, wake %s, pod's script %s", id, rehearsed.Sub(before).Round(time.Millisecond), woken.Sub(checkout).Round(time.Millisecond), time.Since(podStart).Round(time.Millisecond))
	}
	if len(random) != 2 {
		t.Error("two machines share identity or entropy")
	}

	// An image that is converted again comes out the same, so that a cache that was emptied
	// costs no template.
	again := r.busybox("again")
	for i, img := range []*image.Image{r.image, again} {
		f, err := os.Open(img.DiskPath)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := kit.SparseDigest(f, r.driver.Features().SlotBytes)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		id, err := snapshot.IdentifyDisk(img.DiskPath)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("conversion %d: %s, %+v", i, sum, id)
		random[sum] = true
	}
	if len(random) != 3 {
		t.Error("two conversions of an image differ")
	}

	// What is to be restored with another disk is refused, and built again.
	other := filepath.Join(r.state, "other.ext4")
	head := bytes.Repeat([]byte{1}, 4096)
	if err := os.WriteFile(other, head, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(other, r.driver.Features().SlotBytes); err != nil {
		t.Fatal(err)
	}
	cfg := r.config()
	cfg.Images = []string{other}
	if _, err := r.store.Restore(t.Context(), ref, "three", cfg, snapshot.RestoreOptions{}); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("with another disk: %v", err)
	}
	// A machine of a quarantined snapshot can still be woken.
	m, err := r.driver.Load(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	client, err := r.store.Wake(t.Context(), m, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()

	// Cold, without any snapshot.
	cold, err := r.store.Boot(t.Context(), "cold", spec, r.config(), snapshot.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cold.Guest.Close() }()
	t.Logf("cold: driver %s, agent %s, prepare %s", cold.Timings.Restore.Round(time.Millisecond), cold.Timings.Agent.Round(time.Millisecond), cold.Timings.Prepare.Round(time.Millisecond))
	if got := pod(t, cold.Guest, []string{recipe.Layer}, script); got != want {
		t.Errorf("cold: output\n%s\nwant\n%s", got, want)
	}
}

// TestTemplateMachinesFail: what goes wrong in a machine is told, and leaves nothing.
func TestTemplateMachinesFail(t *testing.T) {
	r := newRig(t)
	base, _, err := r.store.Ensure(t.Context(), snapshot.Spec{Kind: snapshot.KindBase, Shape: r.config().Shape, Kit: r.kit})
	if err != nil {
		t.Fatal(err)
	}
	base.Release()
	kill := func() { // the hypervisor, as a crash of it does
		for _, id := range r.machines() {
			for _, pid := range qemuPIDs(t, r.state, id) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, test := range []struct {
		name    string
		recipe  recipe.Recipe
		step    recipe.Step
		message string
		output  string
		kill    bool
	}{
		{"fails", recipe.Recipe{Setup: []recipe.Command{sh("echo to stdout; echo to stderr >&2; exit 7")}}, recipe.StepSetup, "ended with exit code 7", "to stderr", false},
		{"no program", recipe.Recipe{Setup: []recipe.Command{{Args: []string{"/bin/nothing"}}}}, recipe.StepSetup, "cannot be executed", "", false},
		{"hangs", recipe.Recipe{Setup: []recipe.Command{sh("echo working; sleep 1000")}, Timeout: 15 * time.Second}, recipe.StepSetup, "timeout of 15s is over", "working", false},
		{"fills the disk", recipe.Recipe{Setup: []recipe.Command{sh("fallocate -l 15G /a; echo next; fallocate -l 8G /b && dd if=/dev/zero of=/c bs=1M count=100")}}, recipe.StepSetup, "no space is left on the machine's disk", "", false},
		{"wants memory", recipe.Recipe{Setup: []recipe.Command{sh("x=0123456789abcdef; while :; do x=$x$x; done")}}, recipe.StepSetup, "", "", false},
		{"start ends", recipe.Recipe{Start: &recipe.Command{Args: []string{"sh", "-c", "echo no config >&2; exit 2"}}, Readiness: &recipe.Readiness{TCP: &recipe.TCP{Port: 8080}}}, recipe.StepStart, "ended with exit code 2", "no config", false},
		{"not ready", recipe.Recipe{Start: &recipe.Command{Args: []string{"sleep", "1000"}}, Readiness: &recipe.Readiness{TCP: &recipe.TCP{Port: 8080}, Timeout: 2 * time.Second}}, recipe.StepReadiness, "not ready within 2s", "", false},
		{"no git", recipe.Recipe{Checkout: &recipe.Checkout{Repository: "https://git.example.com/r.git", Ref: "main", Directory: "/src"}}, recipe.StepCheckout, "must have git", "", false},
		{"machine is killed", recipe.Recipe{Setup: []recipe.Command{sh("echo working; sleep 1000")}, Timeout: 2 * time.Minute}, recipe.StepSetup, "the machine ended", "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r.events = nil
			spec := r.spec("bad", test.recipe)
			if test.kill {
				prepare := spec.Template.Prepare
				spec.Template.Prepare = func(ctx context.Context, c *guest.Client) error {
					timer := time.AfterFunc(3*time.Second, kill)
					defer timer.Stop()
					return prepare(ctx, c)
				}
			}
			before := time.Now()
			_, _, err := r.store.Ensure(t.Context(), spec)
			t.Logf("after %s: %v", time.Since(before).Round(time.Millisecond), err)
			var build *snapshot.BuildError
			var step *recipe.StepError
			if !errors.As(err, &build) || !errors.As(err, &step) {
				t.Fatalf("%v", err)
			}
			if build.Step != "prepare" || build.Template != "default/bad" || step.Step != test.step || !strings.Contains(step.Message, test.message) || !strings.Contains(step.Output, test.output) {
				t.Errorf("%s: %s: %s\noutput %q", build.Step, step.Step, step.Message, step.Output)
			}
			if got := r.machines(); len(got) != 0 {
				t.Errorf("machines are left: %v", got)
			}
			infos, err := r.store.List(t.Context())
			if err != nil || len(infos) != 1 || infos[0].Manifest.Kind != snapshot.KindBase {
				t.Errorf("snapshots %+v, %v", infos, err)
			}
			left, err := filepath.Glob(filepath.Join(r.state, "snapshots", ".building-*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
			if len(r.events) != 1 || r.events[0].Type != snapshot.EventBuildFailed || r.events[0].Template != "default/bad" {
				t.Errorf("events %+v", r.events)
			}
		})
	}
}

// qemuPIDs are the processes that work in a machine's directory.
func qemuPIDs(t *testing.T, state, id string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if dir, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err == nil && dir == filepath.Join(state, "machines", id) {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Errorf("no process of machine %q", id)
	}
	return pids
}
