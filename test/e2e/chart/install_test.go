// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const (
	release   = "vk-firkin"
	namespace = "vk-firkin"
)

// TestRelease is the life of a release: what its policies refuse, its controller at work with its rights, upgrade,
// rollback and uninstall.
func TestRelease(t *testing.T) {
	c := startCluster(t)
	// The strictest standard there is, which the controller's pods must meet.
	c.must(t, "", "create", "namespace", namespace)
	c.must(t, "", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
	notes, err := helm(t, c.Kubeconfig, "install", release, chartDir, "--namespace", namespace)
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, "", "wait", "--for=condition=Established", "--timeout=60s", "crd", "snapshottemplates.firkin.dev", "warmpools.firkin.dev", "nodeledgers.firkin.dev")
	token := c.token(t)
	if !strings.Contains(notes, "join.nodeNetworks is empty") {
		t.Errorf("the notes do not warn of addresses that anybody may have:\n%s", notes)
	}
	command := regexp.MustCompile(`\n  vk-firkin (join https://\S+ --token ` + regexp.QuoteMeta(token) + ` --discovery-token-ca-cert-hash sha256:[0-9a-f]{64}) --then node\n`).FindStringSubmatch(notes)
	if command == nil {
		t.Fatalf("the notes do not tell how to join with the token %s:\n%s", token, notes)
	}
	c.policiesAreIn(t)
	t.Run("controller", func(t *testing.T) { testController(t, c, strings.Fields(command[1])) })
	t.Run("ledgers", func(t *testing.T) { testLedgers(t, c) })
	t.Run("pods", func(t *testing.T) { testPods(t, c) })
	t.Run("supply", func(t *testing.T) { testSupply(t, c) })
	t.Run("prefer ready nodes", func(t *testing.T) { testPreferReady(t, c) })
	t.Run("joining", func(t *testing.T) { testJoining(t, c) })
	t.Run("policies are well-typed", func(t *testing.T) { testTypes(t, c) })
	t.Run("upgrade", func(t *testing.T) { testUpgrade(t, c, token) })
	t.Run("uninstall", func(t *testing.T) { testUninstall(t, c) })
}

// token is the release's bootstrap token.
func (c *clusterUnderTest) token(t *testing.T) string {
	t.Helper()
	out := c.must(t, "", "get", "secrets", "-n", "kube-system", "-l", "app.kubernetes.io/instance="+release, "-o", "json")
	var list corev1.SecretList
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 1 || list.Items[0].Type != corev1.SecretTypeBootstrapToken {
		t.Fatalf("tokens: %v %s", err, out)
	}
	d := list.Items[0].Data
	if expires, err := time.Parse(time.RFC3339, string(d["expiration"])); err != nil || time.Until(expires) > 24*time.Hour || time.Until(expires) < 23*time.Hour {
		t.Errorf("the token is good until %s: %v", d["expiration"], err)
	}
	return string(d["token-id"]) + "." + string(d["token-secret"])
}

// policiesAreIn waits until the API server enforces what was installed: it reads policies by a watch, from
// the newest of which on all are in.
func (c *clusterUnderTest) policiesAreIn(t *testing.T) {
	t.Helper()
	for _, probe := range []struct{ object, says string }{
		{pod("probe", "runtimeClassName: firkin, hostNetwork: true"), "vk-firkin-pods-selecting"},
		{pool("probe", "replicas: 100000"), "vk-firkin-warmpools"},
		{template("probe", "cpu: 33, memory: 1Gi"), "vk-firkin-snapshottemplates"},
	} {
		eventually(t, 30*time.Second, probe.says, func() error {
			if out, err := c.kubectl(t, probe.object, "create", "--dry-run=server", "-f", "-"); err == nil || !strings.Contains(out, probe.says) {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

func pod(name, spec string) string {
	return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + "}, spec: {" + spec + ", containers: [{name: main, image: example}]}}"
}

func pool(name, spec string) string {
	return "{apiVersion: firkin.dev/v1alpha1, kind: WarmPool, metadata: {name: " + name + "}, spec: {templateRef: {name: python}, " + spec + "}}"
}

func template(name, shape string) string {
	return "{apiVersion: firkin.dev/v1alpha1, kind: SnapshotTemplate, metadata: {name: " + name + "}, spec: {image: example, shape: {" + shape + "}}}"
}

// testController: the pods are admitted under the "restricted" standard; a controller with the account and the
// arguments of the Deployment works; helm test's command, as that account, finds it at work; and a host joins by the
// command of the notes.
func testController(t *testing.T, c *clusterUnderTest, join []string) {
	var deployment appsv1.Deployment
	if err := json.Unmarshal([]byte(c.must(t, "", "get", "-n", namespace, "deployment", "vk-firkin-controller", "-o", "json")), &deployment); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "pods of the controller", func() error {
		out := c.must(t, "", "get", "-n", namespace, "pods", "-l", "app.kubernetes.io/component=controller", "-o", "name")
		if n := strings.Count(out, "pod/"); n != 2 {
			return fmt.Errorf("there are %d; events: %s", n, c.must(t, "", "get", "-n", namespace, "events"))
		}
		return nil
	})
	kubeconfig, err := c.AccountKubeconfig(t.Context(), namespace, "vk-firkin-controller", filepath.Join(c.dir, "controller.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	args := slices.Clone(deployment.Spec.Template.Spec.Containers[0].Args)
	for i, arg := range args {
		if strings.HasPrefix(arg, "--health-probe-address=") || strings.HasPrefix(arg, "--metrics-address=") {
			args[i], _, _ = strings.Cut(arg, ":") // ports of this host are not the test's
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log strings.Builder
	run := exec.CommandContext(ctx, binary(t, "vk-firkin"), append(args, "--kubeconfig", kubeconfig)...)
	run.Stdout, run.Stderr = &log, &log
	run.Cancel = func() error { return run.Process.Signal(syscall.SIGTERM) }
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	check := c.hook(t)
	out, err := exec.CommandContext(ctx, binary(t, "vk-firkin"), append(slices.Clone(check.Spec.Containers[0].Args), "--kubeconfig", kubeconfig)...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "is at work") {
		t.Errorf("helm test's command: %v: %s", err, out)
	}
	if check.Spec.ServiceAccountName != deployment.Spec.Template.Spec.ServiceAccountName || check.Spec.Containers[0].Image != deployment.Spec.Template.Spec.Containers[0].Image {
		t.Errorf("helm test runs as %s with %s", check.Spec.ServiceAccountName, check.Spec.Containers[0].Image)
	}
	state := filepath.Join(c.dir, "mac-9")
	if out, err := exec.CommandContext(ctx, binary(t, "vk-firkin"), append(join, "--state-dir", state, "--cache-dir", state, "--node-name", "mac-9", "--timeout", "60s")...).CombinedOutput(); err != nil {
		t.Errorf("the notes' command for joining: %v: %s", err, out)
	} else if out := c.must(t, "", "auth", "whoami", "--kubeconfig="+filepath.Join(state, "credentials", "kubeconfig")); !strings.Contains(out, "system:node:mac-9") {
		t.Errorf("who has joined is %s", out)
	}
	c.must(t, template("python", "cpu: 100m, memory: 512Mi"), "apply", "-f", "-")
	c.must(t, template("firkin", "cpu: 100m, memory: 512Mi"), "apply", "-f", "-") // has the name of the plain class
	c.must(t, pool("python", "replicas: 2"), "apply", "-f", "-")
	c.must(t, "", "wait", "--for=create", "--timeout=60s", "runtimeclass/python")
	c.must(t, "", "wait", "--for=jsonpath={.status.runtimeClassName}=python", "--timeout=30s", "snapshottemplate/python")
	c.must(t, "", "wait", `--for=jsonpath={.status.conditions[?(@.type=="Ready")].status}=False`, "--timeout=30s", "warmpool/python")
	if out := c.must(t, "", "get", "snapshottemplate", "firkin", "-o", "jsonpath={.status.conditions}"); !strings.Contains(out, "pods of no template") {
		t.Errorf("the template with the plain class' name says %s", out)
	}
	c.must(t, "", "delete", "snapshottemplate", "firkin")
	cancel()
	if err := run.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("the controller ended: %v", err)
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "forbidden") {
			t.Errorf("a right is missing: %s", line)
		}
	}
}

// hook is the pod of helm test.
func (c *clusterUnderTest) hook(t *testing.T) (check corev1.Pod) {
	t.Helper()
	out, err := helm(t, c.Kubeconfig, "get", "hooks", release, "--namespace", namespace)
	if err == nil {
		err = yaml.UnmarshalStrict([]byte(out), &check)
	}
	if err != nil || check.Annotations["helm.sh/hook"] != "test" {
		t.Fatalf("%v in %s", err, out)
	}
	return check
}

// testLedgers: a node makes its own NodeLedger and writes its status, and nothing else.
func testLedgers(t *testing.T, c *clusterUnderTest) {
	dir := filepath.Join(c.dir, "mac-7")
	if err := c.Credentials(t.Context(), "mac-7", dir); err != nil {
		t.Fatal(err)
	}
	asNode := "--kubeconfig=" + filepath.Join(dir, "kubeconfig")
	ledger := func(name, spec string) string {
		return "{apiVersion: firkin.dev/v1alpha1, kind: NodeLedger, metadata: {name: " + name + "}, spec: {" + spec + "}}"
	}
	const targets = "targets: [{namespace: default, pool: p, template: t, revision: r, replicas: 1}]"
	const status = `{"status":{"activeMachines":0,"warmMachines":3}}`
	c.must(t, ledger("mac-8", ""), "create", "-f", "-")
	c.refused(t, ledger("mac-7", targets), []string{"only the controller writes the spec"}, "create", asNode, "-f", "-")
	c.must(t, ledger("mac-7", ""), "create", asNode, "-f", "-")
	c.must(t, "", "patch", asNode, "nodeledger", "mac-7", "--subresource=status", "--type=merge", "-p", status)
	if out := c.must(t, "", "get", asNode, "nodeledger", "mac-7", "-o", "jsonpath={.status.warmMachines}"); out != "3" {
		t.Errorf("its own status has %q warm machines", out)
	}
	c.refused(t, "", []string{"a node may write only the NodeLedger of its own name", "system:node:mac-7 is not mac-8"}, "patch", asNode, "nodeledger", "mac-8", "--subresource=status", "--type=merge", "-p", status)
	c.refused(t, ledger("mac-9", ""), []string{"a node may write only the NodeLedger of its own name"}, "create", asNode, "-f", "-")
	c.refused(t, "", []string{"cannot patch resource"}, "patch", asNode, "nodeledger", "mac-7", "--type=merge", "-p", `{"spec":{"targets":[]}}`)
	c.refused(t, "", []string{"cannot delete resource"}, "delete", asNode, "nodeledger", "mac-8")
	c.refused(t, "", []string{"cannot list resource"}, "get", asNode, "warmpools", "-A")
	c.must(t, "", "get", asNode, "snapshottemplates", "-A")
	c.must(t, "", "delete", "nodeledger", "mac-7", "mac-8")
}

// testPods: what these nodes cannot give is refused to pods that must run there, told to pods that may, and
// is nobody else's business.
func testPods(t *testing.T, c *clusterUnderTest) {
	create := []string{"create", "--dry-run=server", "-f", "-"}
	many := `{apiVersion: v1, kind: Pod, metadata: {name: many}, spec: {runtimeClassName: firkin, hostNetwork: true, volumes: [{name: a, emptyDir: {}}, {name: b, persistentVolumeClaim: {claimName: c}}, {name: h, hostPath: {path: /etc}}],
  containers: [{name: one, image: x}, {name: two, image: x, resources: {limits: {nvidia.com/gpu: 1}}, securityContext: {privileged: true, seLinuxOptions: {level: s0}}, volumeMounts: [{name: a, mountPath: /a, mountPropagation: Bidirectional}]}]}}`
	c.refused(t, many, []string{
		"vk-firkin-pods-selecting",
		"spec.hostNetwork: not supported yet (a pod has the network of its own machine)",
		"spec.volumes[1].persistentVolumeClaim: not supported yet (a machine's disks are made and deleted with it",
		"spec.volumes[2].hostPath: the nodes' own files are not shared with machines",
		"spec.containers[1].resources.limits.nvidia.com/gpu: not supported yet",
		"spec.containers[1].securityContext.seLinuxOptions: not supported yet",
		"spec.containers[1].volumeMounts[0].mountPropagation: Bidirectional is not supported yet, only None, HostToContainer",
	}, create...)
	c.refused(t, pod("selects", "nodeSelector: {firkin.dev/machine: 'true'}, hostPID: true"), []string{"spec.hostPID"}, create...)
	out := c.must(t, pod("tolerates", "tolerations: [{key: firkin.dev/machine, operator: Exists}], hostIPC: true"), create...)
	if !strings.Contains(out, "Warning: ") || !strings.Contains(out, "spec.hostIPC: not supported yet") {
		t.Errorf("a pod that tolerates the taint is not warned: %s", out)
	}
	for name, spec := range map[string]string{
		"elsewhere": "hostNetwork: true", "everywhere": "tolerations: [{operator: Exists}], hostNetwork: true",
		"fine": "runtimeClassName: firkin, shareProcessNamespace: true, volumes: [{name: a, emptyDir: {medium: Memory}}]", "template": "runtimeClassName: python",
	} {
		if out := c.must(t, pod(name, spec), create...); strings.Contains(out, "Warning") {
			t.Errorf("%s: %s", name, out)
		}
	}
	c.must(t, pod("runs", "runtimeClassName: firkin"), "create", "-f", "-")
	var runs corev1.Pod
	if err := json.Unmarshal([]byte(c.must(t, "", "get", "pod", "runs", "-o", "json")), &runs); err != nil || runs.Spec.NodeSelector["firkin.dev/machine"] != "true" {
		t.Errorf("the RuntimeClass leads to %v: %v", runs.Spec.NodeSelector, err)
	}
	debug := func(container string) []string {
		return []string{"patch", "pod", "runs", "--subresource=ephemeralcontainers", "-p", `{"spec":{"ephemeralContainers":[{"name":"debug","image":"x"` + container + `}]}}`}
	}
	c.refused(t, "", []string{"spec.ephemeralContainers[0].securityContext.seLinuxOptions"}, debug(`,"securityContext":{"seLinuxOptions":{"level":"s0"}}`)...)
	c.must(t, "", debug("")...)
	c.must(t, "", "delete", "pod", "runs", "--force", "--grace-period=0")
}

// testSupply: bounds of pools and templates, by value and by annotation of the namespace.
func testSupply(t *testing.T, c *clusterUnderTest) {
	create := []string{"create", "--dry-run=server", "-f", "-"}
	c.refused(t, pool("many", "replicas: 1001"), []string{"spec.replicas: 1001 is more than the 1000 that a pool of namespace default may have"}, create...)
	c.refused(t, "", []string{"spec.replicas: 5000 is more than the 1000"}, "scale", "warmpool/python", "--replicas=5000")
	c.refused(t, "", []string{"spec.replicas: 5000 is more than the 1000"}, "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"replicas":5000}}`)
	c.refused(t, template("large", "cpu: 32001m, memory: 1Gi"), []string{"spec.shape.cpu: 32001m is more than the 32"}, create...)
	c.refused(t, template("large", "cpu: 1, memory: 129Gi"), []string{"spec.shape.memory: 129Gi is more than the 128Gi"}, create...)
	c.must(t, template("right", "cpu: 32, memory: 128Gi"), create...)
	c.must(t, pool("right", "replicas: 1000, reclaimPolicy: Never, priority: 7"), create...)
	c.must(t, "", "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"reclaimPolicy":"Never","priority":7}}`)

	c.must(t, "", "annotate", "namespace", "default", "firkin.dev/max-pool-replicas=1", "firkin.dev/max-pool-priority=5", "firkin.dev/allow-reclaim-never=false",
		"firkin.dev/max-template-cpu=50m", "firkin.dev/max-template-memory=1Gi")
	eventually(t, 30*time.Second, "the namespace's limits", func() error { // the API server caches namespaces
		if out, err := c.kubectl(t, pool("three", "replicas: 3"), create...); err == nil || !strings.Contains(out, "more than the 1 that") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	c.refused(t, pool("urgent", "replicas: 1, priority: 6"), []string{"spec.priority: 6 is more than the 5"}, create...)
	c.refused(t, pool("greedy", "replicas: 1, reclaimPolicy: Never"), []string{"spec.reclaimPolicy: pools of namespace default may not keep room"}, create...)
	c.refused(t, template("large", "cpu: 51m, memory: 1Gi"), []string{"spec.shape.cpu: 51m is more than the 50m"}, create...)
	c.refused(t, template("large", "cpu: 1m, memory: 2Gi"), []string{"spec.shape.memory: 2Gi is more than the 1Gi"}, create...)
	// The pool has more of everything, from before: it may be labelled and changed, and gets no more.
	c.must(t, "", "label", "warmpool", "python", "a=b")
	c.refused(t, "", []string{"spec.replicas: 3 is more than the 1"}, "scale", "warmpool/python", "--replicas=3")
	c.refused(t, "", []string{"spec.priority: 8 is more than the 5"}, "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"priority":8}}`)
	c.must(t, "", "scale", "warmpool/python", "--replicas=1")
	c.must(t, "", "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"priority":6}}`)
	c.must(t, "", "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"reclaimPolicy":"OnDemand"}}`)
	c.refused(t, "", []string{"spec.reclaimPolicy: pools of namespace default may not keep room"}, "patch", "warmpool", "python", "--type=merge", "-p", `{"spec":{"reclaimPolicy":"Never"}}`)
	change := func(shape string) string {
		return strings.Replace(template("python", shape), "image: example", "image: other", 1)
	}
	c.must(t, change("cpu: 100m, memory: 512Mi"), "apply", "-f", "-")
	c.refused(t, change("cpu: 101m, memory: 512Mi"), []string{"spec.shape.cpu: 101m is more than the 50m"}, "apply", "-f", "-")
	c.must(t, "", "annotate", "namespace", "default", "firkin.dev/max-pool-replicas-", "firkin.dev/max-pool-priority-", "firkin.dev/allow-reclaim-never-",
		"firkin.dev/max-template-cpu-", "firkin.dev/max-template-memory-")
}

// testPreferReady: a pod of a template prefers nodes with a ready machine of any of the template's pools.
func testPreferReady(t *testing.T, c *clusterUnderTest) {
	c.must(t, pool("second", "replicas: 1"), "apply", "-f", "-")
	c.must(t, strings.Replace(pool("other", "replicas: 1"), "name: python", "name: ruby", 1), "apply", "-f", "-")
	want := []string{"warm.firkin.dev/default.python", "warm.firkin.dev/default.second"}
	keys := func(spec string) ([]string, error) {
		var p corev1.Pod
		out, err := c.kubectl(t, pod("quick", spec), "create", "--dry-run=server", "-o", "json", "-f", "-")
		if err == nil {
			err = json.Unmarshal([]byte(out), &p)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		var keys []string
		if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
			for _, term := range a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				keys = append(keys, fmt.Sprint(term.Preference.MatchExpressions[0].Key))
			}
		}
		slices.Sort(keys)
		return keys, nil
	}
	eventually(t, 30*time.Second, "a preference", func() error {
		got, err := keys("runtimeClassName: python")
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it prefers %v", got)
		}
		return err
	})
	for spec, want := range map[string][]string{
		"runtimeClassName: firkin":                               nil,
		"hostNetwork: true":                                      nil,
		"runtimeClassName: python, affinity: {podAffinity: {}}":  want,
		"runtimeClassName: python, affinity: {nodeAffinity: {}}": want,
		"runtimeClassName: python, affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: mine, operator: Exists}]}}]}}": append([]string{"mine"}, want...),
	} {
		if got, err := keys(spec); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: prefers %v, want %v: %v", spec, got, want, err)
		}
	}
	c.must(t, "", "delete", "warmpool", "second", "other")
}

// testJoining: who has the token may ask for a certificate, about which the controller decides, and nothing else.
func testJoining(t *testing.T, c *clusterUnderTest) {
	as := []string{"--as=system:bootstrap:abcdef", "--as-group=system:bootstrappers", "--as-group=system:bootstrappers:vk-firkin"}
	for question, want := range map[string]string{
		"create certificatesigningrequests.certificates.k8s.io":                          "yes",
		"create certificatesigningrequests.certificates.k8s.io --subresource=nodeclient": "no",
		"get secrets": "no", "list nodes": "no", "create nodeledgers.firkin.dev": "no",
	} {
		out, _ := c.kubectl(t, "", append(append([]string{"auth", "can-i"}, strings.Fields(question)...), as...)...) // "no" is an error too
		if lines := strings.Fields(out); !slices.Contains(lines, want) {
			t.Errorf("may who joins %s? %s, want %s", question, out, want)
		}
	}
}

// testTypes: kube-controller-manager checks the validations' expressions against the API's types, and warns of none.
// (It does not look into variables.)
func testTypes(t *testing.T, c *clusterUnderTest) {
	eventually(t, 60*time.Second, "type checking", func() error {
		out := c.must(t, "", "get", "validatingadmissionpolicies", "-l", "app.kubernetes.io/instance="+release, "-o",
			"jsonpath={range .items[*]}{.metadata.name} {.metadata.generation} {.status.observedGeneration} {.status.typeChecking}{\"\\n\"}{end}")
		var errs []error
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) < 3 || fields[1] != fields[2] {
				errs = append(errs, fmt.Errorf("not checked yet: %s", line))
			} else if len(fields) > 3 && fields[3] != "{}" {
				errs = append(errs, fmt.Errorf("warned of: %.2000s", line))
			}
		}
		if n := strings.Count(out, "\n"); n != 5 {
			errs = append(errs, fmt.Errorf("%d policies", n))
		}
		return errors.Join(errs...)
	})
}

// testUpgrade: an upgrade brings the definitions to what the chart has, keeps the token and what users made;
// a rollback takes back what was set.
func testUpgrade(t *testing.T, c *clusterUnderTest, token string) {
	replicas := func() string {
		return c.must(t, "", "get", "-n", namespace, "deployment", "vk-firkin-controller", "-o", "jsonpath={.spec.replicas}")
	}
	columns := func() string {
		return c.must(t, "", "get", "crd", "warmpools.firkin.dev", "-o", "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}")
	}
	// As an older chart had it.
	before := columns()
	c.must(t, "", "patch", "crd", "warmpools.firkin.dev", "--type=json", "-p", `[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns/0"}]`)
	if columns() == before {
		t.Fatal("the definition was not changed")
	}
	uid := c.must(t, "", "get", "warmpool", "python", "-o", "jsonpath={.metadata.uid}")
	if _, err := helm(t, c.Kubeconfig, "upgrade", release, chartDir, "--namespace", namespace, "--set", "controller.replicas=3", "--force-conflicts"); err != nil {
		t.Fatal(err)
	}
	if got := columns(); got != before {
		t.Errorf("after the upgrade the definition has the columns %s, want %s", got, before)
	}
	if got := c.token(t); got != token {
		t.Errorf("the upgrade replaced the token %.6s by %.6s", token, got)
	}
	if got := replicas(); got != "3" {
		t.Errorf("there are %s controllers after the upgrade", got)
	}
	if _, err := helm(t, c.Kubeconfig, "rollback", release, "1", "--namespace", namespace, "--force-conflicts"); err != nil {
		t.Fatal(err)
	}
	if got := replicas(); got != "2" {
		t.Errorf("there are %s controllers after the rollback", got)
	}
	if got := c.must(t, "", "get", "warmpool", "python", "-o", "jsonpath={.metadata.uid}"); got != uid {
		t.Errorf("the pool is another one: %s, was %s", got, uid)
	}
}

// testUninstall: what the chart made is gone, but for the definitions; what users made stays.
func testUninstall(t *testing.T, c *clusterUnderTest) {
	if _, err := helm(t, c.Kubeconfig, "uninstall", release, "--namespace", namespace); err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(t)
	c.must(t, "", "get", "warmpool/python", "snapshottemplate/python", "crd/nodeledgers.firkin.dev")
	// Who joined keeps its name: its certificate is good without the release.
	joined := c.must(t, "", "get", "configmap/vk-firkin-joined", "-n", namespace, "-o", "jsonpath={.metadata.uid} {.data}")
	defer func() {
		if now := c.must(t, "", "get", "configmap/vk-firkin-joined", "-n", namespace, "-o", "jsonpath={.metadata.uid} {.data}"); now != joined {
			t.Errorf("the names that were given are %s, were %s", now, joined)
		}
	}()
	// The next release takes them and the definitions over.
	if _, err := helm(t, c.Kubeconfig, "install", release, chartDir, "--namespace", namespace); err != nil {
		t.Errorf("install once more: %v", err)
	}
}

// nothingLeft waits until nothing is left of the release, in no namespace and of no kind, but the definitions and
// the names that were given to nodes.
func (c *clusterUnderTest) nothingLeft(t *testing.T) {
	t.Helper()
	kinds := strings.Fields(c.must(t, "", "api-resources", "--verbs=list", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool {
		return strings.HasPrefix(kind, "events") || strings.HasPrefix(kind, "componentstatuses")
	})
	eventually(t, 60*time.Second, "the end of what the chart made", func() error {
		var left []string
		out, err := c.Output(t.Context(), "get", strings.Join(kinds, ","), "-A", "-l", "app.kubernetes.io/instance="+release, "-o", "name")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "customresourcedefinition.") && line != "configmap/vk-firkin-joined" {
				left = append(left, line)
			}
		}
		for line := range strings.Lines(c.must(t, "", "get", "leases,serviceaccounts,secrets,configmaps", "-n", namespace, "-o", "name")) {
			if line = strings.TrimSpace(line); !slices.Contains([]string{"serviceaccount/default", "configmap/kube-root-ca.crt", "configmap/vk-firkin-joined"}, line) {
				left = append(left, line)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
}
