package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func main() {
	ctx := context.Background()
	k := must(kit.Load(os.Args[1]))
	dir := must(filepath.Abs(os.Args[2]))
	os.MkdirAll(dir, 0o755)
	d := must(qemu.Open(ctx, qemu.Options{StateDir: filepath.Join(dir, "s"), CacheDir: filepath.Join(dir, "c"), Arch: "amd64", Accelerator: "tcg", Kit: k, Logger: slog.New(slog.DiscardHandler)}))
	defer d.Close()
	reg := must(images.StartRegistry(images.RegistryOptions{}))
	ref := must(reg.Push("busybox", must(images.Busybox(ctx, filepath.Join(dir, "cache")))))
	is := must(image.Open(filepath.Join(dir, "images"), image.Options{SlotBytes: d.Features().SlotBytes, Arch: "amd64", InsecureRegistries: []string{reg.Addr()}, MinFreeBytes: 1 << 30}))
	_ = ref
	img := must(is.Pull(ctx, reg.Addr()+"/busybox", image.PullOptions{Policy: image.PullIfNotPresent}))
	st := must(snapshot.Open(ctx, filepath.Join(dir, "snap"), snapshot.Options{Driver: d, MinFreeBytes: 1 << 30, Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}}}))
	shape := vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}
	r, _, err := st.Ensure(ctx, snapshot.Spec{Kind: snapshot.KindBase, Shape: shape, Kit: k})
	if err != nil {
		panic(err)
	}
	id := fmt.Sprintf("x%d", time.Now().Unix()%100000)
	t0 := time.Now()
	run := must(st.Restore(ctx, r, id, vm.Config{Shape: shape, Kit: k, Images: []string{img.DiskPath}}, snapshot.RestoreOptions{}))
	fmt.Println("restore", time.Since(t0))
	defer func() { run.Machine.Delete(ctx); st.Forget(id) }()
	c := run.Guest
	rnd(ctx, c, "a0")
	rnd(ctx, c, "a1")
	rnd(ctx, c, "a2")
	rnd(ctx, c, "a3")
	u := must(run.Machine.(vm.Meter).Usage(ctx))
	fmt.Println("private MiB", u.PrivateBytes>>20)
	fmt.Println(string(must(run.Machine.(vm.Consoler).Console(ctx))))
	run.Machine.(vm.Pauser).Pause(ctx)
	time.Sleep(2 * time.Second)
	t := time.Now()
	run.Machine.Resume(ctx)
	fmt.Println("resume", time.Since(t))
	t = time.Now()
	fmt.Println(c.Ping(ctx), "ping", time.Since(t))
	rnd(ctx, c, "a4")
	rnd(ctx, c, "a5")
}

func rnd(ctx context.Context, c *guest.Client, id string) {
	t := time.Now()
	lap := func(s string) { fmt.Printf("  %s %dms", s, time.Since(t).Milliseconds()); t = time.Now() }
	must(c.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "x", Hosts: []byte("127.0.0.1 localhost\n"), ResolvConf: []byte("nameserver 10.0.2.3\n")})))
	lap("setup")
	began := t
	must(c.Containers.CreateContainer(ctx, connect.NewRequest(&agentv1.CreateContainerRequest{Id: id, Args: []string{"/bin/sh", "-c", "echo hi"}, Env: []string{"PATH=/bin"}})))
	lap("create")
	must(c.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: id})))
	lap("start")
	s := must(c.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: id, Follow: true})))
	for s.Receive() {
		lap("output")
		break
	}
	_, _ = io.Discard, s.Err()
	s.Close()
	fmt.Printf("  total %dms", time.Since(began).Milliseconds())
	t = time.Now()
	must(c.Containers.RemoveContainer(ctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id})))
	lap("remove")
	fmt.Println()
}
