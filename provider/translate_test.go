// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Each line is a patch of an ordinary pod, and the field that is to be named; none for what is accepted.
// TestUnsupportedMacOS: what a system without namespaces and cgroups cannot give is refused
// by the name of the field.
func TestUnsupportedMacOS(t *testing.T) {
	mac := Template{MilliCPU: 2000, Template: warmpool.Template{
		Namespace: "team", Name: "mac", GuestOS: vm.GuestMacOS, Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, Images: []string{"mac:1"},
	}}
	for _, tt := range []struct{ patch, says string }{
		{`{}`, ""},
		{`{"containers":[{"name":"a","image":"mac:1","resources":{"requests":{"cpu":"1","memory":"1Gi","firkin.dev/macos-vm":"1"},"limits":{"firkin.dev/macos-vm":"1"}},"securityContext":{"runAsUser":501}}]}`, ""},
		{`{"containers":[{"name":"a","image":"mac:1"},{"name":"b","image":"mac:1"}],"volumes":[{"name":"v","emptyDir":{}}]}`, ""},
		{`{"containers":[{"name":"a","image":"mac:1"},{"name":"b","image":"other:1"}]}`, "spec.containers[1].image"},
		{`{"containers":[{"name":"a","image":"mac:1","resources":{"limits":{"cpu":"1"}}}]}`, "spec.containers[0].resources.limits.cpu"},
		{`{"containers":[{"name":"a","image":"mac:1","resources":{"limits":{"memory":"1Gi"}}}]}`, "spec.containers[0].resources.limits.memory"},
		{`{"containers":[{"name":"a","image":"mac:1"}],"resources":{"limits":{"memory":"1Gi"}}}`, "spec.resources.limits"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"readOnlyRootFilesystem":true}}]}`, "spec.containers[0].securityContext.readOnlyRootFilesystem"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"privileged":true}}]}`, "spec.containers[0].securityContext.privileged"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"allowPrivilegeEscalation":false}}]}`, "spec.containers[0].securityContext.allowPrivilegeEscalation"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"capabilities":{"drop":["ALL"]}}}]}`, "spec.containers[0].securityContext.capabilities"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"procMount":"Unmasked"}}]}`, "spec.containers[0].securityContext.procMount"},
		{`{"containers":[{"name":"a","image":"mac:1","securityContext":{"seccompProfile":{"type":"RuntimeDefault"}}}]}`, "spec.containers[0].securityContext.seccompProfile"},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"name":"a","image":"mac:1"}]}`, "spec.securityContext.seccompProfile"},
		{`{"securityContext":{"seccompProfile":{"type":"Unconfined"}},"containers":[{"name":"a","image":"mac:1","securityContext":{"allowPrivilegeEscalation":true,"privileged":false}}]}`, ""},
		{`{"securityContext":{"sysctls":[{"name":"kernel.x","value":"1"}]},"containers":[{"name":"a","image":"mac:1"}]}`, "spec.securityContext.sysctls"},
		{`{"containers":[{"name":"a","image":"mac:1"}],"volumes":[{"name":"v","emptyDir":{"medium":"Memory"}}]}`, "spec.volumes[0].emptyDir.medium"},
		{`{"containers":[{"name":"a","image":"mac:1"}],"volumes":[{"name":"v","image":{"reference":"mac:1"}}]}`, "spec.volumes[0].image"},
		{`{"containers":[{"name":"a","image":"mac:1"}],"volumes":[{"name":"v","image":{"reference":"other:1"}}]}`, "spec.volumes[0].image.reference"},
		{`{"containers":[{"name":"a","image":"mac:1","volumeMounts":[{"name":"v","mountPath":"/v","readOnly":true,"recursiveReadOnly":"IfPossible"}]}]}`, ""},
		{`{"containers":[{"name":"a","image":"mac:1","volumeMounts":[{"name":"v","mountPath":"/v","readOnly":true,"recursiveReadOnly":"Enabled"}]}]}`, "spec.containers[0].volumeMounts[0].recursiveReadOnly"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "mac:1"}}}}
		if err := json.Unmarshal([]byte(tt.patch), &pod.Spec); err != nil {
			t.Fatal(err)
		}
		if faults := unsupported(pod); len(faults) > 0 {
			t.Errorf("%s is refused for every pod: %v", tt.patch, faults)
		}
		p := planOf(pod)
		r := useTemplate(pod, p, mac)
		switch {
		case tt.says == "" && r != nil:
			t.Errorf("%s is refused: %s", tt.patch, r.Message)
		case tt.says != "" && (r == nil || !strings.Contains(r.Message, tt.says)):
			t.Errorf("%s: refusal is %+v, want one that says %q", tt.patch, r, tt.says)
		case tt.says == "" && len(p.lowerLayers(0)) > 0:
			t.Errorf("%s: a macOS guest has no layers", tt.patch)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for _, tt := range []struct{ patch, field string }{
		{`{}`, ""},
		{`{"hostNetwork":true}`, "spec.hostNetwork"},
		{`{"hostPID":true}`, "spec.hostPID"},
		{`{"hostIPC":true}`, "spec.hostIPC"},
		{`{"hostUsers":false}`, ""},
		{`{"initContainers":[{"name":"i"},{"name":"j","restartPolicy":"Always"}]}`, ""},
		{`{"initContainers":[{"name":"i","volumeDevices":[{"name":"v","devicePath":"/d"}]}]}`, "spec.initContainers[0].volumeDevices"},
		{`{"ephemeralContainers":[{"name":"e","volumeDevices":[{"name":"v","devicePath":"/d"}]}]}`, ""}, // is not started: see unsupportedEphemeral
		{`{"activeDeadlineSeconds":5}`, ""},
		{`{"runtimeClassName":"x","overhead":{"cpu":"1","memory":"1Gi"}}`, ""},
		{`{"containers":[{"name":"a","resources":{"limits":{"warm.firkin.dev/team.app":"1"},"requests":{"warm.firkin.dev/team.app":"1"}}}]}`, ""},
		{`{"resourceClaims":[{"name":"x"}]}`, "spec.resourceClaims"},
		{`{"resources":{"limits":{"cpu":"1","memory":"1Mi"}}}`, ""},
		{`{"resources":{"limits":{"hugepages-2Mi":"2Mi"}}}`, "spec.resources.limits.hugepages-2Mi"},
		{`{"resources":{"requests":{"cpu":"1","memory":"1Mi"}},"hostnameOverride":"a.b"}`, ""},
		{`{"os":{"name":"windows"}}`, "spec.os.name"},
		{`{"os":{"name":"linux"}}`, ""},
		{`{"tolerations":[{"operator":"Exists"}],"nodeSelector":{"a":"b"},"affinity":{},"priority":5,"schedulerName":"x"}`, ""},
		{`{"dnsPolicy":"None","dnsConfig":{"nameservers":["192.0.2.53"]},"hostname":"h","subdomain":"s","hostAliases":[{"ip":"192.0.2.2","hostnames":["x"]}]}`, ""},
		{`{"securityContext":{"runAsUser":1,"runAsGroup":2,"fsGroup":3,"supplementalGroups":[4],"runAsNonRoot":true,"fsGroupChangePolicy":"Always"}}`, ""},
		{`{"securityContext":{"sysctls":[{"name":"a","value":"b"}]}}`, ""},
		{`{"securityContext":{"windowsOptions":{"runAsUserName":"u"}}}`, ""},
		{`{"securityContext":{"seLinuxChangePolicy":"Recursive"}}`, "spec.securityContext.seLinuxChangePolicy"},
		{`{"securityContext":{"appArmorProfile":{"type":"RuntimeDefault"}}}`, "spec.securityContext.appArmorProfile.type"},
		{`{"securityContext":{"appArmorProfile":{"type":"Unconfined"}}}`, ""},
		{`{"securityContext":{"seLinuxOptions":{"user":"u"}}}`, "spec.securityContext.seLinuxOptions"},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}}}`, ""},
		{`{"securityContext":{"seccompProfile":{"type":"Unconfined"}}}`, ""},
		{`{"securityContext":{"supplementalGroupsPolicy":"Strict"}}`, ""},
		{`{"securityContext":{"supplementalGroupsPolicy":"Other"}}`, "spec.securityContext.supplementalGroupsPolicy"},
		{`{"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"c"}}]}`, "spec.volumes[0].persistentVolumeClaim"},
		{`{"volumes":[{"name":"v","csi":{"driver":"c"}}]}`, "spec.volumes[0].csi"},
		{`{"volumes":[{"name":"v","nfs":{"server":"c"}}]}`, "spec.volumes[0].nfs"},
		{`{"volumes":[{"name":"v","ephemeral":{"volumeClaimTemplate":{"spec":{}}}}]}`, "spec.volumes[0].ephemeral"},
		{`{"volumes":[{"name":"v","gitRepo":{"repository":"c"}}]}`, "spec.volumes[0].gitRepo"},
		{`{"volumes":[{"name":"v","image":{"reference":"c","pullPolicy":"Always"}}]}`, ""},
		{`{"volumes":[{"name":"v","emptyDir":{"medium":"HugePages"}}]}`, "spec.volumes[0].emptyDir.medium"},
		{`{"volumes":[{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"1Mi"}},{"name":"w","emptyDir":{}}]}`, ""},
		{`{"volumes":[{"name":"v","emptyDir":{}},{"name":"w","emptyDir":{"sizeLimit":"1Mi"}}]}`, ""},
		{`{"volumes":[{"name":"v","emptyDir":{"medium":"HugePages-2Mi"}}]}`, "spec.volumes[0].emptyDir.medium"},
		{`{"volumes":[{"name":"v","configMap":{"name":"c","defaultMode":384,"optional":true,"items":[{"key":"k","path":"p","mode":256}]}}]}`, ""},
		{`{"volumes":[{"name":"v","secret":{"secretName":"c"}},{"name":"w","downwardAPI":{"items":[{"path":"p","fieldRef":{"fieldPath":"metadata.name"}}]}}]}`, ""},
		{`{"volumes":[{"name":"v","projected":{"defaultMode":420,"sources":[{"serviceAccountToken":{"path":"token","expirationSeconds":3607}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}]}}]}`, ""},
		{`{"volumes":[{"name":"v","projected":{"sources":[{"clusterTrustBundle":{"path":"x","name":"b"}},{"clusterTrustBundle":{"path":"y","signerName":"s/s","labelSelector":{"matchLabels":{"a":"b"}},"optional":true}}]}}]}`, ""},
		{`{"volumes":[{"name":"v","projected":{"sources":[{"podCertificate":{"signerName":"s/s","keyType":"RSA3072"}}]}}]}`, "spec.volumes[0].projected.sources[0].podCertificate"},
		{`{"containers":[{"name":"a","livenessProbe":{"exec":{"command":["x"]},"periodSeconds":1,"terminationGracePeriodSeconds":1}}]}`, ""},
		{`{"containers":[{"name":"a","readinessProbe":{"httpGet":{"port":"web","httpHeaders":[{"name":"a","value":"b"}]}},"startupProbe":{"grpc":{"port":1,"service":"s"}}}]}`, ""},
		{`{"initContainers":[{"name":"s","restartPolicy":"Always","startupProbe":{"tcpSocket":{"port":1}}}],"containers":[{"name":"a"}]}`, ""},
		{`{"containers":[{"name":"a","lifecycle":{"stopSignal":"SIGINT"}}]}`, ""},
		{`{"containers":[{"name":"a","ports":[{"containerPort":1,"hostPort":2,"hostIP":"127.0.0.1"}]},{"name":"b","ports":[{"containerPort":1,"hostPort":2,"protocol":"SCTP"}]}]}`, "spec.containers[1].ports[0].hostPort"},
		{`{"containers":[{"name":"a","ports":[{"containerPort":1,"protocol":"TCP","name":"x"}]}]}`, ""},
		{`{"containers":[{"name":"a","restartPolicy":"Never","restartPolicyRules":[{"action":"Restart","exitCodes":{"operator":"In","values":[3]}}]}]}`, ""},
		{`{"containers":[{"name":"a","restartPolicy":"Never","restartPolicyRules":[{"action":"RestartAllContainers"}]}]}`, "spec.containers[0].restartPolicyRules[0].action"},
		{`{"containers":[{"name":"a","volumeDevices":[{"name":"v","devicePath":"/d"}]}]}`, "spec.containers[0].volumeDevices"},
		{`{"containers":[{"name":"a","volumeMounts":[{"name":"v","mountPath":"/v","mountPropagation":"Bidirectional"}]}]}`, "spec.containers[0].volumeMounts[0].mountPropagation"},
		{`{"containers":[{"name":"a","volumeMounts":[{"name":"v","mountPath":"/v","mountPropagation":"HostToContainer"},{"name":"v","mountPath":"/w","mountPropagation":"None"}]}]}`, ""},
		{`{"containers":[{"name":"a","volumeMounts":[{"name":"v","mountPath":"/v","subPathExpr":"$(A)"},{"name":"v","mountPath":"/w","readOnly":true,"recursiveReadOnly":"Enabled"}]}]}`, ""},
		{`{"containers":[{"name":"a","volumeMounts":[{"name":"v","mountPath":"/v","subPath":"a","readOnly":true,"recursiveReadOnly":"Disabled"}]}]}`, ""},
		{`{"containers":[{"name":"a","terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}]}`, ""},
		{`{"containers":[{"name":"a","terminationMessagePath":"/tmp/x"}]}`, ""},
		{`{"containers":[{"name":"a","terminationMessagePolicy":"FallbackToLogsOnError"}]}`, ""},
		{`{"containers":[{"name":"a","resources":{"limits":{"cpu":"1","memory":"1Mi"},"requests":{"cpu":"1","memory":"1Mi","ephemeral-storage":"1Mi"}}}]}`, ""},
		{`{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"1Mi"}}}]}`, ""},
		{`{"containers":[{"name":"a","resources":{"limits":{"nvidia.com/gpu":"1"}}}]}`, "spec.containers[0].resources.limits.nvidia.com/gpu"},
		{`{"containers":[{"name":"a","resources":{"claims":[{"name":"x"}]}}]}`, "spec.containers[0].resources.claims"},
		{`{"containers":[{"name":"a","env":[{"name":"E","valueFrom":{"fileKeyRef":{"volumeName":"v"}}}]}]}`, "spec.containers[0].env[0].valueFrom.fileKeyRef"},
		{`{"containers":[{"name":"a","securityContext":{"privileged":true,"seccompProfile":{"type":"Localhost","localhostProfile":"p.json"}}}]}`, ""},
		{`{"containers":[{"name":"a","securityContext":{"privileged":false,"allowPrivilegeEscalation":true,"readOnlyRootFilesystem":true,"runAsUser":1,"procMount":"Default"}}]}`, ""},
		{`{"containers":[{"name":"a","securityContext":{"allowPrivilegeEscalation":false}}]}`, ""},
		{`{"containers":[{"name":"a","securityContext":{"capabilities":{"drop":["ALL"],"add":["SYS_ADMIN"]}}}]}`, ""},
		{`{"containers":[{"name":"a","securityContext":{"seLinuxOptions":{"level":"s0"}}}]}`, "spec.containers[0].securityContext.seLinuxOptions"},
		{`{"initContainers":[{"name":"i","securityContext":{"appArmorProfile":{"type":"Localhost","localhostProfile":"p"}}}]}`, "spec.initContainers[0].securityContext.appArmorProfile.type"},
		{`{"containers":[{"name":"a","securityContext":{"procMount":"Unmasked"}}]}`, ""},
		{`{"containers":[{"name":"a","stdin":true,"stdinOnce":true,"tty":true,"workingDir":"/x","envFrom":[{"prefix":"p","configMapRef":{"name":"c"}}]}]}`, ""},
	} {
		t.Run(tt.patch, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}}
			if err := json.Unmarshal([]byte(tt.patch), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			faults := unsupported(pod)
			if tt.field == "" && len(faults) > 0 || tt.field != "" && (len(faults) != 1 || !strings.HasPrefix(faults[0], tt.field+":")) {
				t.Errorf("got %q, want %q", faults, tt.field)
			}
		})
	}
}

// Every rule is about a field that exists: a misspelled one would refuse what it should allow.
func TestRulesNameFields(t *testing.T) {
	known := map[string]bool{}
	var walk func(reflect.Type, string, int)
	walk = func(rt reflect.Type, path string, depth int) {
		switch rt.Kind() {
		case reflect.Pointer:
			walk(rt.Elem(), path, depth)
		case reflect.Slice:
			walk(rt.Elem(), path+"[]", depth)
		case reflect.Struct:
			if depth > 8 {
				return
			}
			for i := range rt.NumField() {
				name, _, _ := strings.Cut(rt.Field(i).Tag.Get("json"), ",")
				p := path
				if name != "" {
					p = join(path, name)
					known[p] = true
				}
				walk(rt.Field(i).Type, p, depth+1)
			}
		default: // has no fields
		}
	}
	walk(reflect.TypeFor[corev1.PodSpec](), "", 0)
	for path := range rules() {
		if !known[path] && !strings.Contains(path, "ontainers[].resources.") && !strings.HasPrefix(path, "resources.requests.") && !strings.HasPrefix(path, "resources.limits.") && !irrelevant(path) {
			t.Errorf("rule for %q: there is no such field", path)
		}
	}
}

// irrelevant are combinations that the table of volume sources makes and the API has not.
func irrelevant(path string) bool {
	return strings.HasPrefix(path, "volumes[].") && slices.ContainsFunc([]string{"name", "secretName", "optional", "defaultMode", "items[].key", "items[].fieldRef", "items[].resourceFieldRef"},
		func(s string) bool { return strings.HasSuffix(path, "."+s) })
}

func TestStopSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{"": 15, "SIGINT": 2, "quit": 3, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "nonsense": 15, "999": 15, "-1": 15} {
		if got := stopSignal(in); got != want {
			t.Errorf("%q is %d, want %d", in, got, want)
		}
	}
}

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "a", "B": "$(A)"}
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "a", "$(B)": "$(A)", "$$(A)": "$(A)", "$(C)": "$(C)", "$A": "$A", "$": "$", "x$": "x$", "$(A": "$(A", "$$$(A)": "$a", "$(A)$(A)": "aa",
	} {
		if got := expand(in, known); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	img := ImageConfig{Entrypoint: []string{"e", "$(A)"}, Cmd: []string{"c"}}
	for _, tt := range []struct {
		command, args, want string
	}{
		{"", "", "e $(A) c"}, {"x", "", "x"}, {"", "y $(A)", "e $(A) y v"}, {"x $(A)", "y", "x v y"},
	} {
		got, err := commandLine(&corev1.Container{Command: strings.Fields(tt.command), Args: strings.Fields(tt.args)}, img, map[string]string{"A": "v"})
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%q %q gives %q, %v; want %q", tt.command, tt.args, got, err, tt.want)
		}
	}
	if _, err := commandLine(&corev1.Container{}, ImageConfig{}, nil); err == nil {
		t.Error("no command at all is accepted")
	}
}

func TestNonRoot(t *testing.T) {
	yes, zero, some := true, int64(0), int64(5)
	for _, tt := range []struct {
		image string
		uid   *int64
		ok    bool
	}{{"", nil, false}, {"0", nil, false}, {"root", nil, false}, {"www", nil, false}, {"33:33", nil, true}, {"", &some, true}, {"33", &zero, false}} {
		c := &corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: tt.uid}}
		if _, err := userOf(&corev1.Pod{}, c, tt.image); (err == nil) != tt.ok {
			t.Errorf("image user %q, uid %v: %v", tt.image, tt.uid, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	dns := DNS{Machine: []string{"10.0.2.3"}, Cluster: []string{"10.96.0.10"}, Domain: "cluster.local"}
	for _, tt := range []struct {
		policy corev1.DNSPolicy
		dns    DNS
		config *corev1.PodDNSConfig
		want   string
		fell   bool
	}{
		{corev1.DNSDefault, dns, nil, "nameserver 10.0.2.3\n", false},
		{corev1.DNSClusterFirst, dns, nil, "search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", false},
		{corev1.DNSClusterFirst, DNS{Machine: []string{"10.0.2.3"}}, nil, "nameserver 10.0.2.3\n", true},
		{corev1.DNSNone, dns, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: []string{"x"}, Options: []corev1.PodDNSConfigOption{{Name: "edns0"}}}, "search x\nnameserver 192.0.2.1\noptions edns0\n", false},
		{corev1.DNSClusterFirst, dns, &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: func() *string { s := "2"; return &s }()}}},
			"search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:2\n", false},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: tt.policy, DNSConfig: tt.config}}
		pod.Namespace = "ns"
		if got := resolvConf(pod, tt.dns); string(got.content) != tt.want || got.fellBack != tt.fell || len(got.cut) > 0 {
			t.Errorf("%s: %q, %+v, want %q", tt.policy, got.content, got, tt.want)
		}
	}
}

// The template of a pod is what it was at admission, whatever becomes of it.
func TestRecordKeepsTemplate(t *testing.T) {
	r := newRecords(t.TempDir(), durable.Host)
	s := testState(corev1.RestartPolicyAlways, 1)
	s.plan.template = &Template{MilliCPU: 250, Template: warmpool.Template{Namespace: "ns", Name: "t", Revision: "aa", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Images: []string{"i"}, Recipe: recipe.Recipe{Setup: []recipe.Command{{Args: []string{"make"}}}, Timeout: time.Minute}}}
	if err := r.save(recordOf(s)); err != nil {
		t.Fatal(err)
	}
	recs, faults, err := r.load()
	if err != nil || len(recs) != 1 || len(faults) != 0 || !reflect.DeepEqual(recs[0].Template, s.plan.template) {
		t.Fatalf("records %+v, %v", recs, faults)
	}
	// A process that died before it had a machine goes on with the same.
	rec := recs[0]
	rec.Machine, rec.Images = machineRecord{}, nil
	e := &environment{log: slog.New(slog.DiscardHandler)}
	got := e.restoreState(t.Context(), rec, t0)
	if got.plan == nil || !reflect.DeepEqual(got.plan.template, s.plan.template) || got.plan.shape != s.plan.template.Shape ||
		got.plan.budget != (Budget{MilliCPU: 250, MemoryBytes: 256 << 20}) {
		t.Errorf("state is %+v", got.plan)
	}
}

func TestImageID(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox": "busybox@d", "busybox:1": "busybox@d", "host:5000/a/b": "host:5000/a/b@d", "host:5000/a/b:x": "host:5000/a/b@d", "a/b:x@sha256:0": "a/b@d",
	} {
		if got := imageID(ref, "d"); got != want {
			t.Errorf("%s is shown as %s, want %s", ref, got, want)
		}
	}
}

func TestTemplateName(t *testing.T) {
	class, empty, plain := "class", "", "firkin"
	for _, tt := range []struct {
		annotation string
		class      *string
		want       string
	}{{"", nil, ""}, {"a", nil, "a"}, {"", &class, "class"}, {"a", &class, "a"}, {"", &empty, ""}, {"", &plain, ""}, {"a", &plain, "a"}, {"firkin", nil, "firkin"}} {
		pod := &corev1.Pod{}
		pod.Annotations = map[string]string{"firkin.dev/template": tt.annotation}
		pod.Spec.RuntimeClassName = tt.class
		if got := templateName(pod); got != tt.want {
			t.Errorf("%+v names %q", tt, got)
		}
	}
}

func TestRecords(t *testing.T) {
	r := newRecords(t.TempDir(), durable.Host)
	s := testState(corev1.RestartPolicyAlways, 2)
	s.containers[0].step = containerRunning
	exited(s.containers[1], 3, true)
	if err := r.save(recordOf(s)); err != nil {
		t.Fatal(err)
	}
	recs, faults, err := r.load()
	if err != nil || len(recs) != 1 || len(faults) != 0 {
		t.Fatalf("%d records, %v", len(recs), faults)
	}
	got := recs[0]
	if got.Machine.ID != "pod-1" || !got.Containers[0].Begun || got.Containers[1].Exit.ExitCode != 3 {
		t.Errorf("record is %+v", got)
	}
	if err := os.WriteFile(r.Path("uid"), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if recs, faults, err := r.load(); err != nil || len(recs) != 0 || len(faults) != 1 {
		t.Errorf("a record of another version gives %v, %v", recs, faults)
	}
	if err := r.remove("uid"); err != nil {
		t.Fatal(err)
	}
	if recs, faults, err := r.load(); err != nil || len(recs)+len(faults) != 0 {
		t.Errorf("after removal: %v, %v", recs, faults)
	}
}
