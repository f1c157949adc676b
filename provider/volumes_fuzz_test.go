// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/vk-firkin/vk-firkin/vm"
)

// FuzzVolumeSpec translates whatever a pod says about volumes: nothing panics, and no mount
// leaves its volume.
func FuzzVolumeSpec(f *testing.F) {
	f.Add(`{"containers":[{"name":"a","image":"i","volumeMounts":[{"name":"v","mountPath":"/v","subPathExpr":"$(A)/$(B)"},{"name":"h","mountPath":"/h","subPath":"../x"}],
		"resources":{"limits":{"memory":"1Mi","ephemeral-storage":"1Gi"}}}],
		"volumes":[{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"-1"}},{"name":"h","hostPath":{"path":"/srv/../etc"}},{"name":"i","image":{"reference":"x"}}]}`)
	f.Add(`{"containers":[{"name":"a"}],"volumes":[{"name":"p","projected":{"sources":[{"configMap":{"name":"c","items":[{"key":"k","path":"a/b","mode":-1}]}},{"secret":{"name":"s","optional":true}},
		{"downwardAPI":{"items":[{"path":"l","fieldRef":{"fieldPath":"metadata.labels['x']"}},{"path":"r","resourceFieldRef":{"resource":"limits.cpu","containerName":"a","divisor":"0"}}]}},
		{"serviceAccountToken":{"path":"t","expirationSeconds":-5}},{"clusterTrustBundle":{"signerName":"s","path":"b","labelSelector":{"matchExpressions":[{"key":"","operator":"In"}]}}}]}}]}`)
	f.Add(`{"securityContext":{"fsGroup":-1},"volumes":[{"name":"d","downwardAPI":{"items":[{"path":""}]}},{"name":"e"},{"name":"c","configMap":{"defaultMode":99999}}]}`)
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"k": "v"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": {0}}})
	src := contentSource{objects: newObjects(client), nodeIP: "192.0.2.1"}
	allowed := newHostPaths([]string{"/srv"})
	f.Fuzz(func(t *testing.T, spec string) {
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace, pod.UID = "pod", "ns", "uid"
		if json.Unmarshal([]byte(spec), &pod.Spec) != nil {
			return
		}
		unsupported(pod)
		unsupportedMacOS(pod)
		allowed.faults(pod)
		p := planOf(pod)
		p.shape = vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}
		s := &state{pod: pod, plan: p, images: map[imageKey]*imageState{}}
		imageVolumeSlots(s)
		_, _ = resizeWanted(pod, p)
		overLimit(pod, storageUsage{})
		storageLimited(pod)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if got := volumeSpec(pod, v, p.shape); got != nil && got.GetSizeLimitBytes() < 0 {
				t.Fatalf("size of %v", got)
			}
			if h := v.HostPath; h != nil {
				if _, rest, ok := allowed.within(h.Path); ok && !filepath.IsLocal(rest) {
					t.Fatalf("%q is outside", h.Path)
				}
			}
			if hasContent(v) {
				_, _ = src.content(ctx, pod, v, tokenCache{})
			}
		}
		for c := range containersOf(pod) {
			mountStatus(pod, c.Container)
			mounts, err := mountsOf(pod, c.Container, map[string]string{"A": "..", "B": "/"}, map[string]int{"i": 0})
			for _, m := range mounts {
				if sub := m.GetSubPath(); err == nil && sub != "" && (!filepath.IsLocal(sub) || strings.ContainsRune(sub, 0)) {
					t.Fatalf("%v leaves its volume", m)
				}
			}
		}
	})
}
