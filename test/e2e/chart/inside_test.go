// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
)

// patience is for a machine to be made, and a controller to be ready in it, on a busy host that
// emulates it.
const patience = 4 * time.Minute

// TestReleaseInside: a cluster whose one node is of vk-firkin runs the controller on that node, in a machine, from an image
// that was made without Docker. The release is upgraded, taken back and removed, and what users run does not notice.
func TestReleaseInside(t *testing.T) {
	c := startCluster(t)
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	busybox, err := images.Busybox(t.Context(), filepath.Join(c.dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	user, err := registry.Push("user:1", busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"one", "two"} {
		pushController(t, registry.Addr()+"/tools/vk-firkin:"+tag)
	}
	values := func(tag string) []string {
		return []string{
			// What the host emulates is slow.
			"--set", "controller.startupSeconds=240,controller.leaderElection.leaseSeconds=60",
			"--namespace", namespace, "--set", "controller.replicas=1,controller.image.registry=" + registry.Addr() + ",controller.image.repository=tools/vk-firkin,controller.image.tag=" + tag,
			"--set", "controller.tolerations[0].key=firkin.dev/machine,controller.tolerations[0].operator=Exists",
		}
	}
	notes, err := helm(t, c.Kubeconfig, append([]string{"install", release, chartDir, "--create-namespace"}, values("one")...)...)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	step := func(what string) {
		t.Logf("%-40s %5.1fs", what, time.Since(began).Seconds())
		began = time.Now()
	}
	n := joinFirst(t, c, notes, registry.Addr())
	step("joined, and the node is Ready")

	c.rolled(t)
	step("the controller is Ready in its machine")
	eventually(t, time.Minute, "the controller leads", func() error { // it is Ready before: who waits is of use too
		holder, pod := c.must(t, "", "get", "lease", "-n", namespace, "vk-firkin-controller", "-o", "jsonpath={.spec.holderIdentity}"), c.controllerPod(t)
		if !strings.HasPrefix(holder, strings.TrimPrefix(pod, "pod/")) {
			return fmt.Errorf("%q leads, not %s", holder, pod)
		}
		return nil
	})
	if out, err := helm(t, c.Kubeconfig, "test", release, "--namespace", namespace, "--timeout=110s"); err != nil {
		t.Errorf("helm test: %v: %s", err, out)
	}
	step("helm test")
	// The node's serving certificate is approved by the controller that runs on it; without, there are no logs.
	eventually(t, time.Minute, "the controller's log", func() error {
		out, err := c.kubectl(t, "", "logs", "-n", namespace, "deployment/vk-firkin-controller")
		if err == nil && !strings.Contains(out, `"level"`) {
			err = errors.New("it has none")
		}
		if err != nil {
			return fmt.Errorf("%w: %.500s", err, out)
		}
		return nil
	})

	c.must(t, strings.Replace(template("python", "cpu: 50m, memory: 256Mi"), "image: example", "image: "+fmt.Sprintf("%q", user), 1), "apply", "-f", "-")
	c.must(t, pool("python", "replicas: 1"), "apply", "-f", "-")
	c.must(t, strings.Replace(pod("mine", "runtimeClassName: firkin, terminationGracePeriodSeconds: 1"), "image: example", "image: "+fmt.Sprintf("%q", user), 1), "apply", "-f", "-")
	c.waits(t, "pod/mine", "--for=condition=Ready")
	c.waits(t, "warmpool/python", "--for=condition=Ready")
	step("a pod runs, a pool is Ready")
	users := c.usersMachines(t, n, 2)
	survive := func(what string) {
		t.Helper()
		for id, pid := range users {
			if now := n.Machines()[id]; now != pid {
				t.Errorf("after the %s machine %s has the process %d, had %d", what, id, now, pid)
			}
		}
		if restarts := c.must(t, "", "get", "pod", "mine", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"); restarts != "Running 0" {
			t.Errorf("after the %s the user's pod is %s", what, restarts)
		}
		step(what)
	}

	if _, err := helm(t, c.Kubeconfig, append([]string{"upgrade", release, chartDir, "--set", "controller.log.level=debug"}, values("two")...)...); err != nil {
		t.Fatal(err)
	}
	c.rolled(t)
	if image := c.must(t, "", "get", "-n", namespace, c.controllerPod(t), "-o", "jsonpath={.spec.containers[0].image}"); !strings.HasSuffix(image, ":two") {
		t.Errorf("after the upgrade the controller is of %s", image)
	}
	// The new one works: it gives the node a further machine to have.
	c.must(t, "", "scale", "warmpool/python", "--replicas=2")
	c.waits(t, "warmpool/python", "--for=jsonpath={.status.ready}=2")
	survive("upgrade")
	users = c.usersMachines(t, n, 3)

	if _, err := helm(t, c.Kubeconfig, "rollback", release, "1", "--namespace", namespace); err != nil {
		t.Fatal(err)
	}
	c.rolled(t)
	if image := c.must(t, "", "get", "-n", namespace, c.controllerPod(t), "-o", "jsonpath={.spec.containers[0].image}"); !strings.HasSuffix(image, ":one") {
		t.Errorf("after the rollback the controller is of %s", image)
	}
	survive("rollback")

	if _, err := helm(t, c.Kubeconfig, "uninstall", release, "--namespace", namespace); err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(t)
	eventually(t, time.Minute, "the end of the controller's machine", func() error {
		now := n.Machines()
		maps.DeleteFunc(now, func(id string, _ int) bool { _, theirs := users[id]; return theirs })
		if len(now) > 0 {
			return fmt.Errorf("there are machines of nobody: %v", now)
		}
		return nil
	})
	survive("uninstall")
	c.must(t, "", "exec", "mine", "--", "true")
}

// pushController makes the image with the command that make image runs, of the program that make has built.
func pushController(t *testing.T, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", "./hack/controllerimage", "--binary", runtime.GOARCH+"="+binary(t, "vk-firkin"), "--version", ref, "--name", ref, "--push")
	cmd.Dir = "../../.."
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), ref+"@sha256:") {
		t.Fatalf("make the controller's image: %v: %s", err, out)
	}
}

// joinFirst joins the cluster's first node as the notes say. The controller that would approve it waits for a node
// to run on, so a person does: the one time that it takes.
func joinFirst(t *testing.T, c *clusterUnderTest, notes, registry string) *cluster.Node {
	t.Helper()
	command := regexp.MustCompile(`\n  vk-firkin (join .*) --then node\n`).FindStringSubmatch(notes) // the story starts its node itself
	if command == nil {
		t.Fatalf("the notes do not tell how to join:\n%s", notes)
	}
	const name = "mac-1"
	state := filepath.Join(c.dir, name, "s")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var said strings.Builder
	join := exec.CommandContext(ctx, binary(t, "vk-firkin"), append(strings.Fields(command[1]), "--state-dir", state, "--node-name", name, "--timeout", "120s")...)
	join.Stdout, join.Stderr = &said, &said
	if err := join.Start(); err != nil {
		t.Fatal(err)
	}
	var request string
	eventually(t, time.Minute, "a request for a certificate", func() error {
		request = strings.TrimSpace(c.must(t, "", "get", "csr", "-o", "name"))
		if strings.Count(request, "/") != 1 {
			return fmt.Errorf("there are %q", request)
		}
		return nil
	})
	c.must(t, "", "certificate", "approve", request)
	if err := join.Wait(); err != nil {
		t.Fatalf("join: %v: %s", err, said.String())
	}
	n, err := c.StartNode(ctx, cluster.NodeOptions{
		Name: name, Joined: true, Binary: binary(t, "vk-firkin"), Kits: os.Getenv("FIRKIN_KIT_DIR"), Dir: c.dir, StateDir: state, InsecureRegistries: []string{registry},
		Args: []string{"--min-free-disk", "2Gi", "--refill-min-free-disk", "3Gi"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{{"get", "pods,csr,warmpools,nodeledgers", "-A", "-o", "wide"}, {"get", "events", "-A"}, {"logs", "-n", namespace, "deployment/vk-firkin-controller", "--tail=40"}} {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				out, _ := c.Kubectl(ctx, args...).CombinedOutput()
				cancel()
				t.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
			}
		}
		n.Stop()
	})
	return n
}

// rolled waits until the Deployment has what it was told, and that is ready.
func (c *clusterUnderTest) rolled(t *testing.T) {
	t.Helper()
	eventually(t, patience, "a controller that is ready", func() error {
		out, err := c.kubectl(t, "", "rollout", "status", "-n", namespace, "deployment/vk-firkin-controller", "--timeout=20s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// waits waits for what an object shall be.
func (c *clusterUnderTest) waits(t *testing.T, object, what string) {
	t.Helper()
	eventually(t, patience, object+" "+what, func() error {
		out, err := c.kubectl(t, "", "wait", what, "--timeout=20s", object)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// controllerPod is the one pod of the Deployment that is not being ended.
func (c *clusterUnderTest) controllerPod(t *testing.T) string {
	t.Helper()
	var pods []string
	eventually(t, time.Minute, "one controller", func() error {
		out := c.must(t, "", "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=controller", "-o", "name")
		if pods = strings.Fields(out); len(pods) != 1 {
			return fmt.Errorf("there are %v", pods)
		}
		return nil
	})
	return pods[0]
}

// usersMachines are the node's machines but the controller's, when there are as many as there should be: those of
// pods of the release that have ended go some time after them.
func (c *clusterUnderTest) usersMachines(t *testing.T, n *cluster.Node, want int) (machines map[string]int) {
	t.Helper()
	uid := c.must(t, "", "get", "-n", namespace, c.controllerPod(t), "-o", "jsonpath={.metadata.uid}")
	events := c.must(t, "", "get", "events", "-n", namespace, "--field-selector", "reason=MachineRestored,involvedObject.uid="+uid, "-o", "jsonpath={.items[*].message}")
	controllers := regexp.MustCompile(`Machine (\S+) of`).FindStringSubmatch(events)
	if controllers == nil {
		t.Fatalf("no event tells the controller's machine: %q", events)
	}
	eventually(t, time.Minute, "the machines of users", func() error {
		machines = n.Machines()
		if _, there := machines[controllers[1]]; !there {
			return fmt.Errorf("the controller's machine %s is not among %v", controllers[1], machines)
		}
		delete(machines, controllers[1])
		if len(machines) != want {
			return fmt.Errorf("there are %v beside the controller's %s, want %d", machines, controllers[1], want)
		}
		return nil
	})
	return machines
}
