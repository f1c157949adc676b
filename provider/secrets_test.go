// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"bytes"
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/test/privacy"
)

// TestSecretsStayInMemory: what a pod gets of Secrets and tokens, in its environment and in
// volumes, is in no file of the host, neither while it runs nor when it has; and what is in files is
// their owner's alone.
func TestSecretsStayInMemory(t *testing.T) {
	w := newWorld(t)
	const value = "tooth-fairy-4711"
	if _, err := w.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": []byte(value)}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.state, 0o700); err != nil { //nolint:gosec // as the node does
		t.Fatal(err)
	}
	w.run()
	check := func(when string) {
		t.Helper()
		files := 0
		err := filepath.WalkDir(w.state, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			files++
			for _, secret := range []string{value, base64.StdEncoding.EncodeToString([]byte(value)), "token-of-default"} {
				if bytes.Contains(data, []byte(secret)) {
					t.Errorf("%s: %s holds %q", when, path, secret)
				}
			}
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("%s: %d files, %v", when, files, err)
		}
		if open, _, err := privacy.Open(w.state); err != nil || len(open) > 0 {
			t.Errorf("%s: others can use %q, %v", when, open, err)
		}
	}
	use := func(name string, command ...string) *corev1.Pod {
		p := pod(name, command)
		c := &p.Spec.Containers[0]
		c.Env = []corev1.EnvVar{{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}}}
		c.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}
		c.VolumeMounts = []corev1.VolumeMount{mount("secret", "/secret"), mount("token", "/token")}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
			{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(3607))}}}}}},
		}
		return w.create(p)
	}
	use("runs", "graceful")
	w.awaitPhase("runs", corev1.PodRunning)
	check("while it runs")
	use("over", "exit", "3")
	w.awaitPhase("over", corev1.PodFailed)
	check("when it is over")
	w.delete("runs", ptr(int64(0)))
	w.delete("over", ptr(int64(0)))
	w.awaitNothing()
}
