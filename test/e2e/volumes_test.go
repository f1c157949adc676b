// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// hostShare is the directory of the host that pods may have copies from.
var hostShare string

// volumeFlags let the shared node read volumes again often, and copy from hostShare.
func volumeFlags(dir string) []string {
	hostShare = filepath.Join(dir, "share")
	return []string{"--volume-refresh", "2s", "--allow-host-path", hostShare}
}

// What a pod's volumes hold: sizes in memory, parts named by variables, a copy of a host path,
// a token for an audience; and what changes in the cluster reaches the container, but not
// through a subPath.
func TestVolumeContent(t *testing.T) {
	ns := namespace(t)
	if err := errors.Join(os.MkdirAll(filepath.Join(hostShare, "data"), 0o755), os.WriteFile(filepath.Join(hostShare, "data", "f"), []byte("from the host\n"), 0o644),
		os.Symlink("../../../etc/passwd", filepath.Join(hostShare, "out"))); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "create", "configmap", "settings", "-n", ns, "--from-literal=color=red")
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: box, namespace: `+ns+`, labels: {tier: one}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: sized, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: none, configMap: {name: does-not-exist, optional: true}}
  - {name: labels, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: `+hostShare+`/data, type: Directory}}
  - {name: file, hostPath: {path: `+hostShare+`/data/f, type: File}}
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}]}}
  containers:
  - name: c
    image: `+served.Busybox+`
    command: [sleep, "3600"]
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: sized, mountPath: /sized}
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /part, subPathExpr: "logs/$(POD)"}
    - {name: disk, mountPath: /sealed, readOnly: true, recursiveReadOnly: Enabled}
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /color, subPath: color}
    - {name: none, mountPath: /none}
    - {name: labels, mountPath: /labels}
    - {name: host, mountPath: /host}
    - {name: file, mountPath: /file}
    - {name: token, mountPath: /token}
`)
	waitRunning(t, ns, "box")
	in := func(script string) string {
		return strings.TrimSpace(kubectl(t, "exec", "-n", ns, "box", "--", "sh", "-c", script))
	}
	if out := in("df -k /sized /memory | awk 'NR>1 {print $2}'"); out != "8192\n65536" {
		t.Errorf("memory volumes have %q KiB, want 8 MiB and the memory limit", out)
	}
	if out := in("echo x > /part/x; ls /disk/logs; cat /disk/logs/box/x; ls /none | wc -l"); out != "box\nx\n0" {
		t.Errorf("the part of the volume is %q", out)
	}
	if out := in("cat /sealed/logs/box/x; touch /sealed/y 2>&1; true"); !strings.HasPrefix(out, "x\n") || !strings.Contains(out, "Read-only file system") {
		t.Errorf("the read-only mount says %q", out)
	}
	if out := in("cat /host/f /file; echo changed > /host/f; cat /host/f"); out != "from the host\nfrom the host\nchanged" {
		t.Errorf("the copy of the host path holds %q", out)
	}
	if data, err := os.ReadFile(filepath.Join(hostShare, "data", "f")); err != nil || string(data) != "from the host\n" {
		t.Errorf("the host's file holds %q, %v", data, err)
	}
	waitEvent(t, ns, "box", "HostPathCopied", `Volume "host" is a copy of host path`)
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(in("cat /token/token"), ".")[1])
	if err != nil || !strings.Contains(string(claims), `"aud":["vault"]`) {
		t.Errorf("the token says %s, %v", claims, err)
	}
	if out := in("cat /settings/color /color /labels/labels; stat -c %a /settings/..data/color"); out != "redredtier=\"one\"644" {
		t.Errorf("content is %q", out)
	}
	kubectl(t, "patch", "configmap", "settings", "-n", ns, "-p", `{"data":{"color":"blue","shape":"round"}}`)
	kubectl(t, "label", "pod", "box", "-n", ns, "tier=two", "--overwrite")
	eventually(t, waitShort, "the change in the container", func() error {
		if out := in("cat /settings/color /settings/shape /color /labels/labels 2>&1; true"); out != "blueroundredtier=\"two\"" {
			return fmt.Errorf("it reads %q", out)
		}
		return nil
	})

	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: `+ns+`}
spec:
  volumes: [{name: v, hostPath: {path: `+hostShare+`/out}}]
  containers: [{name: c, image: `+served.Busybox+`, command: [cat, /v], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	waitEvent(t, ns, "outside", "FailedMount", "escapes")
}

// A pod that keeps more than it may is ended, and its status says in the kubelet's words what
// was too much; its neighbour is not.
func TestStorageEviction(t *testing.T) {
	ns := namespace(t)
	for _, p := range []struct{ name, command, limits string }{
		{"volume", "dd if=/dev/zero of=/v/x bs=1M count=4; exec sleep 3600", ""},
		{"layer", "dd if=/dev/zero of=/x bs=1M count=8; exec sleep 3600", "ephemeral-storage: 4Mi"},
		{"modest", "dd if=/dev/zero of=/v/x bs=64k count=8; exec sleep 3600", "ephemeral-storage: 4Mi"},
	} {
		apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: `+p.name+`, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - {name: c, image: `+served.Busybox+`, command: [sh, -c, "`+p.command+`"], resources: {limits: {`+p.limits+`}}, volumeMounts: [{name: v, mountPath: /v}]}
`)
	}
	for name, message := range map[string]string{
		"volume": `Usage of EmptyDir volume "v" exceeds the limit "1Mi".`,
		"layer":  "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi.",
	} {
		pod := waitPod(t, ns, name, "is evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if pod.Status.Reason != "Evicted" || !strings.Contains(pod.Status.Message, message) {
			t.Errorf("%s: status is %s: %q, want Evicted: %q", name, pod.Status.Reason, pod.Status.Message, message)
		}
		waitEvent(t, ns, name, "Evicted", message)
	}
	if pod, err := getPod(t, ns, "modest"); err != nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("the neighbour within its limits: %v, %v", pod.Status.Phase, err)
	}
}

// What needs storage beyond the machine is refused by the name of each field, with what to do.
func TestVolumesRefused(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: refused, namespace: `+ns+`}
spec:
  nodeName: `+node.Name+`
  volumes:
  - {name: a, persistentVolumeClaim: {claimName: data}}
  - {name: b, nfs: {server: 192.0.2.1, path: /}}
  - {name: c, hostPath: {path: /etc}}
  - {name: d, emptyDir: {medium: HugePages}}
  - {name: e, csi: {driver: example.com}}
  containers: [{name: c, image: `+served.Busybox+`, resources: {requests: {cpu: 10m}}}]
`)
	pod := waitPod(t, ns, "refused", "is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	for _, want := range []string{"spec.volumes[0].persistentVolumeClaim:", "spec.volumes[1].nfs:", "spec.volumes[2].hostPath:", "--allow-host-path", "spec.volumes[3].emptyDir.medium:", "spec.volumes[4].csi:", "use an emptyDir"} {
		if !strings.Contains(pod.Status.Message, want) {
			t.Errorf("the refusal does not say %q: %s", want, pod.Status.Message)
		}
	}
}

// An image is mounted as a volume, read-only, whole and in part; one that does not exist
// keeps the container waiting like its own image.
func TestImageVolume(t *testing.T) {
	ns := namespace(t)
	manifest := func(name, image string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: ` + ns + `}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, image: {reference: ` + image + `, pullPolicy: IfNotPresent}}]
  containers:
  - name: c
    image: ` + served.Busybox + `
    command: [sleep, "3600"]
    volumeMounts: [{name: data, mountPath: /data}, {name: data, mountPath: /part, subPath: bin}]
`
	}
	layer, err := images.Layer(images.Dir("bin", 0o755), images.File("bin/words", 0o644, "in part\n"), images.File("words", 0o644, "whole\n"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := images.Image(runtime.GOARCH, v1.Config{}, layer) // it has nothing to run
	if err != nil {
		t.Fatal(err)
	}
	ref, err := served.registries[0].Push("data:1", data)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, manifest("there", ref))
	apply(t, manifest("missing", served.Address+"/does-not-exist:1"))
	waitPod(t, ns, "missing", "waits for the volume's image", func(p *corev1.Pod) bool {
		if len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].State.Waiting == nil {
			return false
		}
		w := p.Status.ContainerStatuses[0].State.Waiting
		return (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") && strings.Contains(w.Message, `volume "data"`)
	})
	waitRunning(t, ns, "there")
	out := kubectl(t, "exec", "-n", ns, "there", "--", "sh", "-c", "cat /data/words /part/words; touch /data/x 2>&1; touch /part/x 2>&1; true")
	if !strings.HasPrefix(out, "whole\nin part\n") || strings.Count(out, "Read-only file system") != 2 {
		t.Errorf("the image volume is %q", out)
	}
}

// What a pod's containers may use together is bounded by the pod's own limit.
func TestPodLimit(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: together, namespace: `+ns+`}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  resources: {limits: {memory: 40Mi, cpu: 500m}}
  containers:
  - {name: modest, image: `+served.Busybox+`, command: [sleep, "3600"]}
  - {name: hungry, image: `+served.Busybox+`, command: [dd, if=/dev/zero, of=/dev/null, bs=64M, count=1]}
`)
	pod := waitPod(t, ns, "together", "has a container that ended", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 2 && p.Status.ContainerStatuses[1].State.Terminated != nil
	})
	if end := pod.Status.ContainerStatuses[1].State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("the container ended with %+v", end)
	}
	if pod.Status.ContainerStatuses[0].State.Running == nil {
		t.Errorf("the modest container is %+v", pod.Status.ContainerStatuses[0].State)
	}
}

// A user changes the resources of a running pod: the container goes on with other limits. What
// the machine cannot hold is infeasible.
func TestResizeInPlace(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: grows, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: `+served.Busybox+`
    command: [sleep, "3600"]
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 100m, memory: 32Mi}}
`)
	before := waitRunning(t, ns, "grows").Status.ContainerStatuses[0]
	resize := func(cpu, memory string) {
		kubectl(t, "patch", "pod", "grows", "-n", ns, "--subresource", "resize", "-p",
			`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"60m","memory":"16Mi"},"limits":{"cpu":"`+cpu+`","memory":"`+memory+`"}}}]}}`)
	}
	resize("300m", "48Mi")
	pod := waitPod(t, ns, "grows", "has its new limits", func(p *corev1.Pod) bool {
		r := p.Status.ContainerStatuses[0].Resources
		return r != nil && r.Limits.Cpu().String() == "300m" && r.Limits.Memory().String() == "48Mi"
	})
	if st := pod.Status.ContainerStatuses[0]; st.RestartCount != 0 || st.ContainerID != before.ContainerID || st.AllocatedResources.Cpu().String() != "60m" {
		t.Errorf("container status is %+v", st)
	}
	if out := kubectl(t, "exec", "-n", ns, "grows", "--", "cat", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max"); out != "30000 100000\n50331648\n" {
		t.Errorf("the guest's cgroup says %q", out)
	}
	resize("300m", "100Gi")
	pod = waitPod(t, ns, "grows", "says that it cannot", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodResizePending {
				return c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonInfeasible && strings.Contains(c.Message, "memory")
			}
		}
		return false
	})
	if r := pod.Status.ContainerStatuses[0].Resources; r == nil || r.Limits.Memory().String() != "48Mi" {
		t.Errorf("an infeasible resize changed the resources to %+v", r)
	}
}
