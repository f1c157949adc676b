// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

func certificate(data string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(data), Headers: map[string]string{"Comment": data}}))
}

// plain is a certificate as it is projected: without headers.
func plain(data string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(data)}))
}

func TestTrustBundles(t *testing.T) {
	bundle := func(name, signer string, labels map[string]string, certs ...string) *certificatesv1beta1.ClusterTrustBundle {
		text := "a comment\n"
		for _, c := range certs {
			text += certificate(c)
		}
		return &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Spec: certificatesv1beta1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))}}
	}
	live := map[string]string{"state": "live"}
	beta := []runtime.Object{
		bundle("own", "", nil, "one", "two", "one"), bundle("s:a", "s/s", live, "three"), bundle("s:b", "s/s", nil, "four", "three"), bundle("o:a", "o/o", live, "five"),
	}
	var stable []runtime.Object
	for _, o := range beta {
		b := o.(*certificatesv1beta1.ClusterTrustBundle)
		stable = append(stable, &certificatesv1.ClusterTrustBundle{ObjectMeta: b.ObjectMeta, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: b.Spec.SignerName, TrustBundle: b.Spec.TrustBundle}})
	}
	for version, client := range map[string]*fake.Clientset{"v1": fake.NewClientset(stable...), "v1beta1": fake.NewClientset(beta...), "none": fake.NewClientset()} {
		absent := version
		client.PrependReactor("*", "clustertrustbundles", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.GetResource().Version == absent {
				return false, nil, nil
			}
			return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "") // the version is not served
		})
		for _, tt := range []struct {
			projection string
			want       []string // certificates; nil with says
			says       string
		}{
			{`"name":"own"`, []string{"one", "two"}, ""},
			{`"name":"none"`, nil, "not found"},
			{`"name":"none","optional":true`, []string{}, ""},
			{`"signerName":"s/s","labelSelector":{}`, []string{"three", "four"}, ""},
			{`"signerName":"s/s","labelSelector":{"matchLabels":{"state":"live"}}`, []string{"three"}, ""},
			{`"signerName":"s/s","labelSelector":{"matchExpressions":[{"key":"state","operator":"DoesNotExist"}]}`, []string{"three", "four"}, ""},
			{`"signerName":"s/s"`, nil, "matched no ClusterTrustBundle"}, // no selector selects nothing
			{`"signerName":"s/s","optional":true`, []string{}, ""},
			{`"signerName":"x/x","labelSelector":{}`, nil, "matched no ClusterTrustBundle"},
			{`"signerName":"s/s","labelSelector":{"matchExpressions":[{"key":"state","operator":"Wrong"}]}`, nil, "labelSelector"},
			{`"optional":true`, nil, "neither name nor signerName"},
		} {
			pod := podOf(t, `{"volumes":[{"name":"v","projected":{"defaultMode":256,"sources":[{"clusterTrustBundle":{"path":"d/ca.pem",`+tt.projection+`}}]}}]}`)
			src := contentSource{objects: newObjects(client)}
			files, err := src.content(t.Context(), pod, &pod.Spec.Volumes[0], tokenCache{})
			if version == "none" {
				if tt.says == "" && len(tt.want) > 0 && err == nil {
					t.Errorf("%s on a server without bundles: %v", tt.projection, files)
				}
				continue
			}
			switch {
			case tt.says != "":
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%s, %s: %v, want %q", version, tt.projection, err, tt.says)
				}
			case err != nil || len(files) != 1 || files[0].GetPath() != "d/ca.pem" || files[0].GetMode() != 0o400:
				t.Errorf("%s, %s: %v, %v", version, tt.projection, files, err)
			default:
				want := make([]string, 0, len(tt.want))
				for _, c := range tt.want {
					want = append(want, plain(c))
				}
				slices.Sort(want)
				if got := string(files[0].GetData()); got != strings.Join(want, "") {
					t.Errorf("%s, %s: bundle is\n%s", version, tt.projection, got)
				}
			}
		}
	}
}

// tokens let a clientset give tokens that are numbered and last for so long.
func tokens(client *fake.Clientset, lasts time.Duration, asked *[]authenticationv1.TokenRequestSpec) {
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		req := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		*asked = append(*asked, req.Spec)
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("token-%d", len(*asked)), ExpirationTimestamp: metav1.NewTime(time.Now().Add(lasts))}}, nil
	})
}

// A token is renewed when a fifth of its life is left, and once a day, for its own audience.
func TestTokenRotation(t *testing.T) {
	for _, tt := range []struct{ lasts, renewed time.Duration }{
		{10 * time.Minute, 8 * time.Minute}, {time.Hour, 48 * time.Minute}, {365 * 24 * time.Hour, 24 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			client := fake.NewClientset()
			var asked []authenticationv1.TokenRequestSpec
			tokens(client, tt.lasts, &asked)
			pod := podOf(t, `{"serviceAccountName":"robot","volumes":[{"name":"v","projected":{"sources":[{"serviceAccountToken":{"audience":"vault","expirationSeconds":`+
				fmt.Sprint(int(tt.lasts.Seconds()))+`,"path":"token"}}]}}]}`)
			src := contentSource{objects: newObjects(client)}
			cache := tokenCache{}
			read := func() string {
				files, err := src.content(t.Context(), pod, &pod.Spec.Volumes[0], cache)
				if err != nil || len(files) != 1 {
					t.Fatal(files, err)
				}
				return string(files[0].GetData())
			}
			first := read()
			time.Sleep(tt.renewed - time.Second)
			if got := read(); got != first {
				t.Errorf("a token of %s is renewed before %s", tt.lasts, tt.renewed)
			}
			time.Sleep(time.Second)
			if got := read(); got == first {
				t.Errorf("a token of %s is not renewed after %s", tt.lasts, tt.renewed)
			}
			if r := asked[0]; len(r.Audiences) != 1 || r.Audiences[0] != "vault" || *r.ExpirationSeconds != int64(tt.lasts.Seconds()) || r.BoundObjectRef.UID != pod.UID {
				t.Errorf("asked for %+v", r)
			}
		})
	}
}

// recordedVolumes is a machine that notes what is written, and when.
type recordedVolumes struct {
	agentv1connect.VolumeServiceClient
	mu     sync.Mutex
	writes []string
}

func (r *recordedVolumes) WriteFiles(_ context.Context, req *connect.Request[agentv1.WriteFilesRequest]) (*connect.Response[agentv1.WriteFilesResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range req.Msg.GetFiles() {
		r.writes = append(r.writes, f.GetPath()+"="+string(f.GetData()))
	}
	return connect.NewResponse(&agentv1.WriteFilesResponse{Changed: true}), nil
}

func (r *recordedVolumes) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.writes
	r.writes = nil
	return got
}

// guestLease is a lease of a machine that is only a connection.
type guestLease struct {
	Lease
	guest *Guest
}

func (l guestLease) Guest(context.Context) (*Guest, error) { return l.guest, nil }

// What changed reaches the machine within a minute and a half, a token before it expires, and
// what did not change is not sent.
func TestVolumesAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"k": "old"}})
		var asked []authenticationv1.TokenRequestSpec
		tokens(client, 10*time.Minute, &asked)
		pod := podOf(t, `{"volumes":[{"name":"cm","configMap":{"name":"c"}},{"name":"e","emptyDir":{}},{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"token"}}]}}]}`)
		env := &environment{content: contentSource{objects: newObjects(client)}, volumeRefresh: defaultVolumeRefresh}
		k := newVolumeKeeper(env, slog.New(slog.DiscardHandler), vm.Shape{})
		machine := &recordedVolumes{}
		h := &machineHold{lease: guestLease{guest: &Guest{Volumes: machine}}}
		h.ctx, h.stop = context.WithCancel(t.Context())
		for i := range pod.Spec.Volumes {
			if v := &pod.Spec.Volumes[i]; hasContent(v) {
				if err := k.write(t.Context(), h.lease.(guestLease).guest, pod, v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := machine.take(); fmt.Sprint(got) != "[k=old token=token-1]" {
			t.Fatalf("first %v", got)
		}
		h.wg.Go(func() { k.refresh(h, func() *corev1.Pod { return pod }) })
		time.Sleep(5 * time.Minute)
		if got := machine.take(); len(got) > 0 {
			t.Errorf("nothing changed, and %v is written", got)
		}
		if _, err := client.CoreV1().ConfigMaps("ns").Update(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"k": "new"}}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(90*time.Second + objectTTL)
		if got := machine.take(); fmt.Sprint(got) != "[k=new]" {
			t.Errorf("after a minute and a half %v is written", got)
		}
		time.Sleep(3*time.Minute - objectTTL)
		if got := machine.take(); fmt.Sprint(got) != "[token=token-2]" {
			t.Errorf("half a minute before the token expires %v is written", got)
		}
		h.stop()
		h.wg.Wait()
	})
}
